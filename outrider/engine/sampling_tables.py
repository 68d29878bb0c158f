"""Sampling tables: what the choice of a slot's tokens depends on, at places of the device that never change."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SamplingTables(NamedTuple):
    """A column for each slot. Captured steps read them, so they are written to and never replaced."""

    shaping: Tensor
    """[5, num_slots] float64: temperature, top_k, top_p, log(min_p), scale of the noise."""
    seeds: Tensor
    """[num_slots] int64"""
    vocab_sizes: Tensor
    """[num_slots] int64: token ids from there on are not chosen in a captured step."""

    @staticmethod
    def of(num_slots: int, device: torch.device) -> SamplingTables:
        """Tables in which nothing is said of any slot yet."""
        shaping = torch.zeros(5, num_slots, dtype=torch.float64, device=device)
        seeds, vocab_sizes = (torch.zeros(num_slots, dtype=torch.int64, device=device) for _ in range(2))
        return SamplingTables(shaping, seeds, vocab_sizes)
