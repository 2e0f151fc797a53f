"""A model repository of one workflow: its inputs chosen and named, its files written."""
