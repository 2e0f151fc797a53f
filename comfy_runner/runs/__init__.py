"""One run: planned, followed, its files in and its results out."""
