"""The workflow and what may stand in it: pure, no file and no server."""
