"""The store: fetched files by their content, with names in the model folders."""
