"""The manifest as a file: read, written, locked, imported, exported, compared."""
