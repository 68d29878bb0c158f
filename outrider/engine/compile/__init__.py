"""Exported graphs that are batch invariant; compiled forward passes; CUDA graphs; small-M GEMM for linear layers."""
