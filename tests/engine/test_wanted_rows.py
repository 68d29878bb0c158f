"""Behind its last attention an exported model computes the wanted tokens alone, with the same bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

from outrider.engine.compile import export as exporting
from outrider.engine.compile.export import export
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job
from tests.engine.histories import random_line
from tests.engine.tiny_models import build

pytestmark = pytest.mark.usefixtures("native_operators")


def test_what_follows_the_last_attention_has_as_many_rows_as_are_wanted() -> None:
    graph = export(build("llama", layers=2)).program.graph
    nodes = list(graph.nodes)
    last = max(index for index, node in enumerate(nodes) if "ragged_attention" in str(node.target))
    behind = [node for node in nodes[last:] if is_product(node)]
    assert len(behind) == 3  # the attention's own, the gated perceptron's as one, the head
    (wanted,) = {str(node.meta["val"].shape[1]) for node in behind}
    before = {str(node.meta["val"].shape[1]) for node in nodes[:last] if is_product(node)}
    assert len(before) == 1
    assert wanted not in before


def is_product(node: fx.Node) -> bool:
    return str(node.target).startswith(("outrider_native.linear", "outrider_native.gated_linear"))


def test_the_wanted_logits_keep_their_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def logits() -> Tensor:
        engine = Engine(build("llama", layers=1), max_sessions=1, max_context=64)
        engine.export()
        slot, line = engine.acquire(), random_line(40, seed=3)
        prompt = engine.step([Job(slot, line)]).logits.clone()
        tree = engine.step([Job(slot, line, [LINE_END, 0, LINE_END], [3, 4, 5], [2, LINE_END])]).logits
        return torch.cat([prompt, tree])

    early = logits()
    monkeypatch.setattr(exporting, "select_early", lambda graph: None)
    assert torch.equal(logits(), early)
