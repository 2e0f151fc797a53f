"""Model files: what the manifest knows, what a name means, what is on disk."""
