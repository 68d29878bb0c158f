"""Logits to tokens: logits processing, Gumbel noise and the choice."""
