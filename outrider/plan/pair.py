"""Pairs of public models that fit each other: one vocabulary, and a draft that is much smaller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from outrider.core.protocol.errors import OutriderError
from outrider.plan.shape import SHAPES, Shape


class UnknownPairError(OutriderError):
    """A name that no pair has."""


class Pair(NamedTuple):
    """A target and its draft."""

    target: str
    """On the hub."""
    draft: str
    target_shape: Shape
    draft_shape: Shape


_QWEN = {"qwen3-8b": "Qwen/Qwen3-8B", "qwen3-14b": "Qwen/Qwen3-14B", "qwen3-32b": "Qwen/Qwen3-32B"}
_LLAMA = {
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "llama-3.1-70b": "meta-llama/Llama-3.1-70B-Instruct",
}
_DRAFTS = (
    (_QWEN, "0.6b", "Qwen/Qwen3-0.6B", "qwen3-0.6b"),
    (_QWEN, "pard-0.6b", "amd/PARD-Qwen3-0.6B", "qwen3-0.6b"),
    (_LLAMA, "1b", "meta-llama/Llama-3.2-1B-Instruct", "llama-3.2-1b"),
    (_LLAMA, "pard-1b", "amd/PARD-Llama-3.2-1B", "llama-3.2-1b"),
)

PAIRS: Final[Mapping[str, Pair]] = {
    f"{name}+{short}": Pair(target, draft, SHAPES[name], SHAPES[shape])
    for targets, short, draft, shape in _DRAFTS
    for name, target in targets.items()
}
"""By the name that `--pair` takes. Drafts called `pard` are parallel draft models (PARD, arXiv 2504.18583)."""


def parse_pair(name: str) -> Pair:
    """The pair of that name. Raises UnknownPairError."""
    if (found := PAIRS.get(name.lower())) is None:
        raise UnknownPairError(
            f"the pair {name!r} is not known; use one of {', '.join(PAIRS)}, or name two models by --target and --draft"
        )
    return found
