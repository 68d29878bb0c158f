"""Grammars: what a text may continue with, token by token. llguidance does the parsing."""
