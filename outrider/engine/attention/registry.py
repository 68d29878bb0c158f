"""The attention backends by name, and the choice among them."""

from __future__ import annotations

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.attention.by_session import TorchAttention
from outrider.engine.attention.interface import AttentionBackend, ModelFacts
from outrider.engine.attention.native import NativeAttention
from outrider.engine.attention.tree import TreeAttention

AUTO = "auto"
"""Lets `select` choose."""

BACKENDS: dict[str, type[AttentionBackend]] = {
    backend.name: backend for backend in (TreeAttention, TorchAttention, NativeAttention)
}
"""In the order in which AUTO tries them. What stands behind `torch`, which serves everything, has to be asked for."""


def select(name: str, facts: ModelFacts) -> type[AttentionBackend]:
    """The backend called `name`, or with AUTO the first that can serve such a model here.

    Raises UnsupportedModelError, in words, if there is none of that name or if it cannot.
    """
    if name == AUTO:
        return next(backend for backend in BACKENDS.values() if not backend.problem(facts))
    backend = BACKENDS.get(name)
    if backend is None:
        raise UnsupportedModelError(
            f"--attention-backend {name}: there is none of that name; use one of {', '.join((AUTO, *BACKENDS))}"
        )
    if problem := backend.problem(facts):
        raise UnsupportedModelError(f"--attention-backend {name} cannot serve this model here: {problem}; or use auto")
    return backend
