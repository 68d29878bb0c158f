"""The native attention computes what the masked one computes, and bit for bit the same in whatever batch."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from outrider.engine.attention.by_session import SessionSteps
from outrider.engine.attention.interface import LayerCall
from outrider.engine.attention.masks import spans_and_masks
from outrider.engine.attention.native import described
from outrider.engine.batch import PackedBatch, pack
from outrider.engine.jobs import LINE_END, Job, plan, settle
from outrider.engine.kv_cache.blocks import BlockPool
from outrider.engine.kv_cache.slots import Slot, SlotPool
from tests.engine.histories import random_line

pytestmark = pytest.mark.usefixtures("native_operators")

ENGINE = 77
NUM_BLOCKS, BLOCK_CELLS = 40, 16


class Layer:
    """One layer's caches, filled at random, over which batches attend both ways."""

    def __init__(
        self,
        *,
        num_heads: int = 4,
        num_kv_heads: int = 2,
        key_size: int = 24,
        value_size: int = 40,
        dtype: torch.dtype = torch.float32,
        window: int | None = None,
        softcap: float = 0.0,
        sinks: bool = False,
        scattered: bool = False,
    ) -> None:
        self.random = torch.Generator().manual_seed(7)
        blocks = BlockPool(NUM_BLOCKS, BLOCK_CELLS)
        if scattered:
            taken = [blocks.take() for _ in range(NUM_BLOCKS)]
            for block in random.Random(3).sample(taken, NUM_BLOCKS):
                blocks.release([block])
        self.pool = SlotPool(3, 200, blocks)
        self.num_heads, self.num_kv_heads, self.dtype, self.window, self.softcap = (
            num_heads,
            num_kv_heads,
            dtype,
            window,
            softcap,
        )
        self.sizes = key_size, value_size
        num_cells = (NUM_BLOCKS + 1) * BLOCK_CELLS
        self.scratch_cell = num_cells - 1
        self.keys = self._noise(num_cells, num_kv_heads, key_size)
        self.values = self._noise(num_cells, num_kv_heads, value_size)
        self.sinks = self._noise(num_heads) if sinks else None

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random).to(self.dtype)

    def inputs(self, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        key_size, value_size = self.sizes
        return (
            self._noise(num_tokens, self.num_heads, key_size).transpose(0, 1),
            self._noise(num_tokens, self.num_kv_heads, key_size).transpose(0, 1),
            self._noise(num_tokens, self.num_kv_heads, value_size).transpose(0, 1),
        )

    def masked(self, batch: PackedBatch, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        spans, masks = spans_and_masks(batch, (self.window,))
        visible = masks[self.window]
        additive = torch.zeros(visible.shape, dtype=self.dtype).masked_fill_(~visible, float("-inf"))
        write_cells = torch.tensor(batch.write_cells)
        caches = (self.keys.clone(),), (self.values.clone(),)
        steps = SessionSteps(*caches, (additive,), write_cells, spans, torch.tensor(batch.blocks), BLOCK_CELLS)
        return steps.attend(*inputs, LayerCall(0, 0.2, self.softcap, self.sinks))

    def native(self, batch: PackedBatch, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        torch.ops.outrider_native.set_caches(ENGINE, [self.keys], [self.values], [self.window or 0], BLOCK_CELLS)
        return torch.ops.outrider_native.ragged_attention(
            *inputs, described(ENGINE, batch), 0, 0.2, self.softcap, self.sinks
        )


def held(pool: SlotPool, num_tokens: int, seed: int) -> tuple[Slot, list[int]]:
    """A slot that holds a line of that many tokens."""
    slot, line = pool.acquire(), random_line(num_tokens, seed=seed)
    settle(plan(Job(slot, line), max_tokens=512))
    return slot, line


def branches(slot: Slot, line: list[int], num_nodes: int) -> Job:
    parents = [LINE_END if node % 3 == 0 else node - 1 - node % 2 for node in range(num_nodes)]
    return Job(slot, line, parents, list(range(num_nodes)), wanted=range(num_nodes))


TILES: Mapping[str, object] = {"dtype": torch.bfloat16, "num_kv_heads": 4, "key_size": 64, "value_size": 64}
"""Numbers and sizes of heads that a processor with tiles attends in them."""

NUM_DRAWS = 16

ODD: Mapping[str, object] = {
    "dtype": torch.bfloat16,
    "num_heads": 7,
    "num_kv_heads": 1,
    "key_size": 70,
    "value_size": 97,
}
"""Numbers of heads and their sizes that fill neither groups nor vectors."""

KINDS = [
    pytest.param({}, id="float32"),
    pytest.param({"dtype": torch.bfloat16}, id="bfloat16"),
    pytest.param(TILES, id="tiles"),
    pytest.param(ODD, id="bfloat16, odd"),
]


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param({}, id="grouped heads"),
        pytest.param({"num_kv_heads": 4, "key_size": 64, "value_size": 64}, id="a key head each"),
        pytest.param({"num_heads": 7, "num_kv_heads": 1, "value_size": 17}, id="one key head, odd sizes"),
        pytest.param({"window": 9}, id="window"),
        pytest.param({"window": 2}, id="window within the tree"),
        pytest.param({"softcap": 3.0}, id="softcap"),
        pytest.param({"sinks": True, "window": 30}, id="sinks"),
        pytest.param({"scattered": True, "window": 40}, id="blocks here and there"),
        pytest.param({"dtype": torch.bfloat16}, id="bfloat16"),
        pytest.param(ODD | {"window": 9, "softcap": 3.0}, id="bfloat16, odd, window and softcap"),
        pytest.param(ODD | {"window": 2, "sinks": True}, id="bfloat16, odd, window within the tree, sinks"),
        pytest.param({"dtype": torch.float16, "sinks": True}, id="float16"),
        pytest.param(TILES, id="tiles"),
        pytest.param(TILES | {"num_heads": 7, "num_kv_heads": 1, "value_size": 96}, id="tiles, one key head"),
        pytest.param(TILES | {"window": 9, "softcap": 3.0}, id="tiles, window and softcap"),
        pytest.param(TILES | {"window": 2, "sinks": True}, id="tiles, window within the tree, sinks"),
        pytest.param(TILES | {"scattered": True, "window": 40, "key_size": 32}, id="tiles, blocks here and there"),
    ],
)
def test_prompts_trees_and_single_tokens_together(layer: Mapping[str, object]) -> None:
    rig = Layer(**layer)  # type: ignore[arg-type]
    (tree_slot, tree_line), (slot, line) = held(rig.pool, 37, 1), held(rig.pool, 101, 2)
    line.append(5)
    jobs = [branches(tree_slot, tree_line, 11), Job(rig.pool.acquire(), random_line(45, seed=3)), Job(slot, line)]
    batch = pack([plan(job, max_tokens=512) for job in jobs])
    batch.pad(len(batch.token_ids) + 3, rig.scratch_cell)
    inputs = rig.inputs(len(batch.token_ids))
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}[rig.dtype]
    expected, found = rig.masked(batch, inputs), rig.native(batch, inputs)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    assert found.abs().sum(dim=(1, 2))[:-3].min() > 0.0


@pytest.mark.parametrize("layer", KINDS)
def test_a_token_gets_the_same_bits_in_any_batch_and_on_any_path(layer: Mapping[str, object]) -> None:
    """A chain of drafts below the line, the same tokens as a piece of prompt, and one of them alone."""
    rig = Layer(**layer, window=50)  # type: ignore[arg-type]
    slot, line = held(rig.pool, 60, 1)
    inputs = rig.inputs(6)
    chain = Job(slot, line, [LINE_END, 0, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6], wanted=range(6))
    as_tree = rig.native(pack([plan(chain, max_tokens=512)]), inputs)
    as_line = rig.native(pack([plan(Job(slot, [*line, 1, 2, 3, 4, 5, 6]), max_tokens=512)]), inputs)
    assert torch.equal(as_tree, as_line)
    settle(plan(Job(slot, [*line, 1, 2, 3, 4, 5]), max_tokens=512))
    last = tuple(each[:, 5:] for each in inputs)
    alone = rig.native(pack([plan(Job(slot, [*line, 1, 2, 3, 4, 5, 6]), max_tokens=512)]), last)  # type: ignore[arg-type]
    assert torch.equal(alone[0], as_line[5])


@pytest.mark.parametrize("layer", KINDS)
@pytest.mark.parametrize("length", [29, 30, 31, 32, 33, 63, 64])
def test_a_branch_gets_the_bits_of_its_path_alone(layer: Mapping[str, object], length: int) -> None:
    """Whatever else the tree holds, and wherever the path begins among the positions that are summed together.

    Drawn often enough that sums in another order show: seldom is one of their results rounded to another bfloat16.
    """
    rig = Layer(**layer, window=40)  # type: ignore[arg-type]
    slot, line = held(rig.pool, length, 1)
    tree = branches(slot, line, 21)
    batch = pack([plan(tree, max_tokens=512)])
    paths: list[list[int]] = []
    for leaf, parent in enumerate(tree.parents):
        paths.append([*(paths[parent] if parent != LINE_END else []), leaf])
    alone = [Job(slot, [*line, *(tree.token_ids[node] for node in path)]) for path in paths]
    batches = [pack([plan(job, max_tokens=512)]) for job in alone]
    for _ in range(NUM_DRAWS):
        inputs = rig.inputs(21)
        found = rig.native(batch, inputs)
        for leaf, path in enumerate(paths):
            own = rig.native(batches[leaf], tuple(each[:, path] for each in inputs))  # type: ignore[arg-type]
            assert torch.equal(own[-1], found[leaf])


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("num_nodes", [1, 3, 8])
@pytest.mark.parametrize("size", [64, 256])
def test_a_head_gets_the_same_bits_beside_others(size: int, num_nodes: int, num_threads: int) -> None:
    """All key heads of a thread, or some, or one share a group. With heads of 256 numbers its values are more than are
    fetched beside its keys."""
    torch.set_num_threads(num_threads)
    rig = Layer(dtype=torch.bfloat16, num_heads=6, num_kv_heads=6, key_size=size, value_size=size)
    slot, line = held(rig.pool, 190, seed=1)
    batch, inputs = pack([plan(branches(slot, line, num_nodes), max_tokens=512)]), rig.inputs(num_nodes)
    together = rig.native(batch, inputs)
    keys, values = rig.keys, rig.values
    for head in range(6):
        rig.keys, rig.values = keys[:, head : head + 1], values[:, head : head + 1]
        alone = rig.native(batch, tuple(each[head : head + 1] for each in inputs))  # type: ignore[arg-type]
        assert torch.equal(alone[:, 0], together[:, head])


@pytest.mark.parametrize("layer", KINDS)
def test_what_nobody_sees_changes_no_bit(layer: Mapping[str, object]) -> None:
    """Not even what is no number, in cells of others and behind the line and its tree."""
    rig = Layer(**layer, window=40)  # type: ignore[arg-type]
    slot, line = held(rig.pool, 61, seed=1)
    batch, inputs = pack([plan(branches(slot, line, 11), max_tokens=512)]), rig.inputs(11)
    expected = rig.native(batch, inputs)
    unseen = torch.ones(len(rig.keys), dtype=torch.bool)
    unseen[slot.places(range(72))] = False
    rig.keys[unseen] = rig.values[unseen] = torch.nan
    found = rig.native(batch, inputs)
    assert torch.equal(found, expected)
    assert found.isfinite().all()


@pytest.mark.parametrize("window", [None, 21])
def test_where_the_blocks_are_changes_no_bit(window: int | None) -> None:
    found: list[Tensor] = []
    for scattered in (False, True):
        rig = Layer(window=window, scattered=scattered)
        slot, line = held(rig.pool, 100, seed=1)
        job = branches(slot, line, 11)
        batch = pack([plan(job, max_tokens=512)])
        cells, noise = slot.places(range(112)), torch.Generator().manual_seed(1)
        rig.keys[cells] = torch.randn(rig.keys[cells].shape, generator=noise)
        rig.values[cells] = torch.randn(rig.values[cells].shape, generator=noise)
        assert (batch.blocks == sorted(batch.blocks)) != scattered
        found.append(rig.native(batch, rig.inputs(11)))
    assert torch.equal(*found)
