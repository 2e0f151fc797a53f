"""How what is missing gets into place: found, fetched, judged, kept, named."""
