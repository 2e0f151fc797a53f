"""Cog's side: the schema of predict.py, and predictions turned into runs."""
