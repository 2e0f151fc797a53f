"""Packs of custom nodes: locked, fetched, installed together with what we need, and tried."""
