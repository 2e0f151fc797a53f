"""Workflows from wherever they are kept: files of many kinds, URLs, data URIs."""
