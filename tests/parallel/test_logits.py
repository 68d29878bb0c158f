"""A model over two ranks computes what one process does, whatever its sessions go through."""

from __future__ import annotations

from pathlib import Path

import torch

from outrider.engine.engine import Engine
from outrider.worker.building import build
from tests.e2e.stack import save_tiny
from tests.engine import histories, tiny_models
from tests.engine.histories import Rig
from tests.parallel.divided import CPU, NUM_RANKS, divided, pair

FAMILIES = ("llama", "qwen3", "gemma3")

HISTORIES = (
    histories.a_tree_equals_its_branches_alone,
    histories.sessions_in_one_step_equal_each_alone,
    histories.any_history_equals_a_fresh_start,
)


class DividedRig(Rig):
    """An engine over two ranks, and the same model in one process under transformers' own attention."""

    def __init__(self, family: str, engine: Engine) -> None:
        self.engine = engine
        self._model = family, CPU, torch.float32
        self._tolerance = None


def test_every_history_has_the_logits_of_one_process(tmp_path: Path) -> None:
    folders = [save_tiny(tiny_models.build(family), tmp_path / family) for family in FAMILIES]
    with pair(folders) as (ranks, other):
        for family, folder in zip(FAMILIES, folders, strict=True):
            engine, model, *_ = build(divided(folder), folder, CPU, ranks=ranks)
            whole = tiny_models.build(family)
            heads = [layer.num_kv_heads for layer in engine._model.facts.layers]
            assert heads == [whole.config.num_key_value_heads // NUM_RANKS] * len(heads)
            assert sum(map(torch.numel, model.parameters())) == sum(map(torch.numel, whole.parameters()))
            for check in HISTORIES:
                check(DividedRig(family, engine))
            ranks.dismiss()
        assert other.wait() == 0
