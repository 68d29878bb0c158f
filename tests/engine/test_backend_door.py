"""An attention backend is one class and one row of the registry: here stands a whole one, and a model runs on it."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.attention import registry
from outrider.engine.attention.interface import AttentionBackend, BatchTensors, LayerCall, ModelFacts
from outrider.engine.batch import PackedBatch
from outrider.engine.engine import Engine
from outrider.engine.kv_cache.tensors import KVCache
from outrider.worker.config import WorkerConfig
from tests.engine import histories
from tests.engine.histories import Rig
from tests.engine.tiny_models import build


class OneByOne(NamedTuple):
    """Each token attends by itself, over the cells that its batch says it sees."""

    batch: PackedBatch
    write_cells: Tensor
    cache: KVCache
    windows: list[int | None]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: LayerCall) -> Tensor:
        keys, values = self.cache.keys[layer.index], self.cache.values[layer.index]
        keys[self.write_cells], values[self.write_cells] = key.transpose(0, 1), value.transpose(0, 1)
        output = query.new_zeros(query.shape[1], query.shape[0], value.shape[-1])
        num_shared = query.shape[0] // key.shape[0]
        for token, cells in enumerate(self._seen(self.windows[layer.index])):
            if cells:
                seen_keys, seen_values = (each[cells].repeat_interleave(num_shared, 1) for each in (keys, values))
                scores = torch.einsum("hd,chd->hc", query[:, token], seen_keys) * layer.scale
                output[token] = torch.einsum("hc,chd->hd", scores.softmax(-1), seen_values)
        return output

    def _seen(self, window: int | None) -> list[list[int]]:
        """Of each token the cells, in the KV cache. A line's cells are its positions, and a path's follow them."""
        batch, size = self.batch, self.batch.block_cells
        seen: list[list[int]] = [[] for _ in batch.token_ids]
        for session in batch.sessions:
            blocks = batch.blocks[session.first_block :]
            for token in range(session.first_token, session.end_token):
                path = batch.path_cells[batch.path_offsets[token] : batch.path_offsets[token + 1]]
                cells = [*range(batch.limits[token]), *path][-(window or 10**9) :]
                seen[token] = [blocks[cell // size] * size + cell % size for cell in cells]
        return seen


class OneByOneAttention(AttentionBackend):
    name = "one-by-one"

    @classmethod
    def problem(cls, facts: ModelFacts) -> str:
        unequal = any(layer.key_size != layer.value_size for layer in facts.layers)
        return "its keys and values have one size" if unequal else ""

    @classmethod
    def block_size(cls, facts: ModelFacts) -> int:
        return 9

    def prepare(self, batch: PackedBatch, tensors: BatchTensors) -> OneByOne:
        return OneByOne(batch, tensors.write_cells, self._cache, [layer.window for layer in self._facts.layers])


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BACKENDS, OneByOneAttention.name, OneByOneAttention)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_model_runs_on_a_backend_that_was_added(family: str) -> None:
    rig = Rig(family)
    usual = rig.engine
    rig.engine = Engine(build(family), max_sessions=8, max_context=128, attention="one-by-one")
    assert (usual.attention, rig.engine.attention) == ("torch", "one-by-one")
    assert (usual.blocks.block_cells, rig.engine.blocks.block_cells) == (16, 9)
    histories.a_tree_equals_its_branches_alone(rig)
    histories.sessions_in_one_step_equal_each_alone(rig)
    histories.blocks_that_lie_between_those_of_others(rig)


def test_what_it_cannot_serve_is_refused_in_its_own_words() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"--attention-backend one-by-one cannot .*: its keys and values have one size"
    ):
        Engine(build("deepseek"), max_sessions=1, max_context=64, attention="one-by-one")


def test_a_worker_takes_its_name() -> None:
    config = WorkerConfig.model_validate({"model": "m", "listen": "", "attention_backend": "one-by-one"})
    assert config.attention_backend in registry.BACKENDS
