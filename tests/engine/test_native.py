"""The native attention computes what the masked one computes, and bit for bit the same in whatever batch."""

from __future__ import annotations

import random
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine import native
from outrider.engine.attention.by_session import SessionSteps
from outrider.engine.attention.interface import LayerCall
from outrider.engine.attention.masks import spans_and_masks
from outrider.engine.attention.native import described
from outrider.engine.batch import PackedBatch, pack
from outrider.engine.compile.ahead import compile_ahead
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job, plan, settle
from outrider.engine.kv_cache.blocks import BlockPool
from outrider.engine.kv_cache.slots import Slot, SlotPool
from outrider.engine.load import self_check
from outrider.engine.load.probe import probe_layers
from tests.engine.histories import random_line
from tests.engine.tiny_models import build

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

KINDS = [
    pytest.param({}, id="float32"),
    pytest.param({"dtype": torch.bfloat16}, id="bfloat16"),
    pytest.param(TILES, id="tiles"),
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
@pytest.mark.parametrize("length", [29, 31, 32, 33, 63, 64])
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


class Package(NamedTuple):
    """A Llama of one layer, compiled ahead of time."""

    dtype: torch.dtype
    path: Path

    def model(self) -> PreTrainedModel:
        return build("llama", layers=1).to(self.dtype)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def package(
    request: pytest.FixtureRequest, native_operators: None, tmp_path_factory: pytest.TempPathFactory
) -> Package:
    if not native.has_linear(request.param):
        pytest.skip(f"this processor has no products of few rows of {request.param}")
    made = Package(request.param, tmp_path_factory.mktemp("package") / "llama.pt2")
    compile_ahead(made.model(), made.path)
    return made


def test_a_package_computes_the_model_for_every_size(package: Package) -> None:
    model = package.model()
    engine = Engine(package.model(), max_sessions=2, max_context=64)
    slot, line = engine.acquire(), random_line(30, seed=3)
    engine.step([Job(slot, line)])
    engine.adopt(package.path)  # keys and values stay
    tolerance = 2e-4 if package.dtype is torch.float32 else 0.1  # bfloat16 has 8 bits
    for num_more in (0, 1, 2, 9, 1):
        line.extend(random_line(num_more, seed=num_more))
        logits = engine.step([Job(slot, line)]).logits
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([line]), use_cache=False).logits[0, -1:]
        torch.testing.assert_close(logits, expected, atol=tolerance, rtol=tolerance)
    engine.release(slot)
    self_check.check(engine, self_check.reference(model, probe_layers(model), 64))
    assert not self_check.depends_on_batch(engine)


def test_operator_by_operator_and_compiled_are_the_same_bits(package: Package) -> None:
    """So a session may move from one to the other between any two steps, and from one worker to another."""
    line = random_line(40, seed=5)

    def run(*, exported: bool, adopt_at: int) -> Tensor:
        engine = Engine(package.model(), max_sessions=1, max_context=64)
        if exported:
            engine.export()
        slot = engine.acquire()
        rows: list[Tensor] = []
        for end in range(20, 40):
            if end == adopt_at:
                engine.adopt(package.path)
            assert engine.batch_invariant
            job = Job(slot, line[:end], [LINE_END, 0, LINE_END], [3, 4, 5], range(LINE_END, 3))
            rows.append(engine.step([job]).logits.clone())
        return torch.cat(rows)

    compiled = run(exported=False, adopt_at=20)
    assert torch.equal(run(exported=True, adopt_at=40), compiled)
    assert torch.equal(run(exported=True, adopt_at=29), compiled)


def test_company_sharing_and_computing_again_change_no_bit(package: Package) -> None:
    engine = Engine(package.model(), max_sessions=4, max_context=96)
    engine.adopt(package.path)

    def rounds(slots: list[Slot], line: list[int], *, forget_at: int | None = None) -> Tensor:
        """The logits of one session over ten steps. The others differ from it after the first block."""
        lines = [[*line[:20], index, *line[21:]] if index else [*line] for index in range(len(slots))]
        found: list[Tensor] = []
        for step in range(10):
            if step == forget_at:
                engine.forget(slots[0])
            jobs = [
                Job(slot, text, [LINE_END, 0, LINE_END], [3, 4, 5], wanted=range(LINE_END, 3))
                for slot, text in zip(slots, lines, strict=True)
            ]
            while jobs:
                output = engine.step(jobs, 40 - 3 * len(slots))
                if jobs[0].slot is slots[0] and output.num_rows[0]:
                    found.append(output.logits[:4].clone())
                jobs = [job for job, num_rows in zip(jobs, output.num_rows, strict=True) if num_rows is None]
            for text in lines:
                text.extend([5, step])
        return torch.cat(found)

    line, slot = random_line(30, seed=1), engine.acquire()
    alone = rounds([slot], line)
    engine.release(slot)
    beside = [engine.acquire() for _ in range(3)]
    assert torch.equal(rounds(beside, line, forget_at=6), alone)
    assert beside[0].num_cached_tokens == 32
    assert beside[0].blocks != sorted(beside[0].blocks)


def test_a_package_computes_the_same_bits_on_any_number_of_threads(package: Package) -> None:
    found: list[Tensor] = []
    for num_threads in (1, 2, 5):
        torch.set_num_threads(num_threads)
        engine = Engine(package.model(), max_sessions=2, max_context=96)
        engine.adopt(package.path)
        jobs = [Job(engine.acquire(), random_line(length, seed=length), wanted=[LINE_END]) for length in (70, 9)]
        found.append(engine.step(jobs).logits.clone())
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])


def test_a_package_calls_the_operators_directly(package: Package) -> None:
    with zipfile.ZipFile(package.path) as files:
        (wrapper,) = (files.read(name).decode() for name in files.namelist() if name.endswith("wrapper.cpp"))
    calls = re.findall(r"(aoti_torch_cpu_\w+|call_function)\((?!Aten)", wrapper)
    angles, norm = ["elementwise", "elementwise"], "row_mean"
    layer = [norm, "linear", "ragged_attention", "linear", norm, "gated_linear"]  # first query, key and value as one
    assert sorted(calls[:3]) == sorted(f"aoti_torch_cpu_{name}" for name in [*angles, norm])
    assert calls[3:] == [f"aoti_torch_cpu_{name}" for name in [*layer[1:], norm, "linear"]]


def test_what_an_operator_throws_reaches_who_runs_the_package(package: Package) -> None:
    run = native.Package(package.path).run
    unknown = PackedBatch()
    unknown.pad(2, scratch_cell=0)
    two = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="no caches of an engine"):
        run([two, two, two, described(1 << 40, unknown)])


def test_what_cannot_be_exported_is_refused_in_words(tmp_path: Path) -> None:
    model = build("llama", layers=1)
    model.forward = lambda **arguments: print(arguments)  # type: ignore[method-assign]
    with pytest.raises(UnsupportedModelError, match=r"cannot be compiled .* use --compile off"):
        compile_ahead(model, tmp_path / "never.pt2")
