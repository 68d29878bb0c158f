"""A model folder to a model that is proved to be computed right."""
