"""The graph of a model, made once for all of its engines in a process: it is no engine's own, and takes longest."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import pytest
from transformers import PreTrainedModel

from outrider.engine import model as ragged
from outrider.engine.compile.export import Exported, export

_graphs: dict[Hashable, Exported] = {}


@contextmanager
def graph_made_once(key: Hashable) -> Iterator[None]:
    """Meanwhile whoever exports a model gets the graph of this key, which is made the first time. Equal keys are of
    models with equal weights in one type."""

    def exported(model: PreTrainedModel) -> Exported:
        if key not in _graphs:
            _graphs[key] = export(model)
        return _graphs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "export", exported)
        yield
