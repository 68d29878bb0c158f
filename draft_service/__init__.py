"""The draft service: a small model that runs ahead of the committed line."""
