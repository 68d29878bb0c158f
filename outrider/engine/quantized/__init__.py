"""Weights in few bits: what checkpoints hold of them, their dense twin, and the linear layers that keep them."""
