"""Where models are: what people type, and what the hosts say of it."""
