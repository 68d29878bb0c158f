"""One device against its own memory: what steps take beside the least that reading takes. No GPU has run it yet."""
