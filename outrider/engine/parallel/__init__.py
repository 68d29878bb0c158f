"""Tensor parallelism: one model over several devices, a rank on each, and all ranks take the same steps."""
