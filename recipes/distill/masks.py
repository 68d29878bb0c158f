"""Mask tokens: how one forward pass guesses several depths, and which of them training drops.

Behind a text's token at place a stand K - 1 mask tokens, at the positions a + 1 to a + K - 1 of the tokens that they
stand for. The output at the token itself guesses what is at a + 1, that at the mask of depth d what is at a + d + 1. A
mask sees the text to a and the masks of its own before it, and nothing that belongs to another place. So serving feeds
a node and its masks; training and measuring feed them at many places of one text at a time.

Training drops masks (PARD's conditional drop, arXiv 2504.18583): of those of one depth, the next depth keeps a part,
and none without the ones before it, whose keys and values it needs. So K depths cost not much more than one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

KEPT_MIN = 0.2
"""Part of the places at which even the deepest masks are kept."""


class Masks(NamedTuple):
    """Mask tokens behind a text of T tokens, N of them in order of their depths."""

    num_tokens: int
    places: Tensor
    """[N], the place in the text behind which each stands."""
    depths: Tensor
    """[N], from 1."""

    def to(self, device: torch.device) -> Masks:
        """The same on that device."""
        return Masks(self.num_tokens, self.places.to(device), self.depths.to(device))

    @property
    def stands_for(self) -> Tensor:
        """[N], the position of each, and the place in the text of the token that it stands for."""
        return self.places + self.depths

    @property
    def positions(self) -> Tensor:
        """[T + N], of the text's tokens and the masks behind it."""
        return torch.cat((torch.arange(self.num_tokens, device=self.places.device), self.stands_for))

    @property
    def visible(self) -> Tensor:
        """[T + N, T + N], whether the token of a row sees that of a column."""
        order = torch.arange(self.num_tokens, device=self.places.device)
        places = torch.cat((order, self.places))
        depths = torch.cat((torch.zeros_like(order), self.depths))
        of_text = (depths == 0) & (places <= places[:, None])
        of_masks = (depths > 0) & (depths <= depths[:, None]) & (places == places[:, None])
        return of_text | of_masks


def everywhere(num_tokens: int, num_depths: int) -> Masks:
    """All masks of depths below `num_depths` that stand for tokens of the text."""
    return _masks(num_tokens, [torch.arange(max(num_tokens - depth, 0)) for depth in range(1, num_depths)])


def dropped(num_tokens: int, num_depths: int, keep: float, generator: torch.Generator) -> Masks:
    """Of all masks those that are kept: each depth has `keep` of the one before it, and at least KEPT_MIN of all."""
    order = torch.randperm(num_tokens, generator=generator)
    kept: list[Tensor] = []
    for depth in range(1, num_depths):
        some = order[: max(1, round(num_tokens * max(keep**depth, KEPT_MIN)))]
        kept.append(some[some < num_tokens - depth].sort().values)
    return _masks(num_tokens, kept)


def _masks(num_tokens: int, places: list[Tensor]) -> Masks:
    depths = [torch.full_like(some, depth) for depth, some in enumerate(places, 1)]
    empty = torch.empty(0, dtype=torch.int64)
    return Masks(num_tokens, torch.cat([empty, *places]), torch.cat([empty, *depths]))
