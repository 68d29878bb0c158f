"""Proposers without a model: n-gram tables and prompt lookup."""
