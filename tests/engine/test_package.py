"""A model compiled ahead of time computes the bits that it computed before, in whatever batch and on any threads."""

from __future__ import annotations

import asyncio
import math
import os
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from outrider.client import Tokens
from outrider.core.draft.outlook import Outlook
from outrider.core.estimate.confidence import DRAFT_PROBABILITIES
from outrider.core.protocol.errors import UnsupportedModelError
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import SpeculationTree
from outrider.core.schedule.draft_run import Burst
from outrider.engine import native
from outrider.engine.attention.native import described
from outrider.engine.batch import PackedBatch
from outrider.engine.compile.ahead import compile_ahead
from outrider.engine.compile.levels import Interruption, LevelsJob
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.kv_cache.slots import Slot
from outrider.engine.load import self_check
from outrider.engine.load.probe import probe_layers
from outrider.engine.sample.sampler import Sampler
from tests.e2e.answers import ask
from tests.e2e.stack import coordinator, load_tiny, save_tiny, worker
from tests.engine import near_ties
from tests.engine.histories import random_line
from tests.engine.readings import in_company, single_steps
from tests.engine.tiny_models import build

pytestmark = pytest.mark.usefixtures("native_operators")


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


@pytest.mark.parametrize("package", [torch.float32], indirect=True, ids=str)
def test_near_ties_are_decided_alike_across_the_switch(package: Package) -> None:
    """In mid-answer, beside other sessions, whose answers are on their way too."""
    line = random_line(100, seed=7)
    engine = Engine(package.model(), max_sessions=4, max_context=128)
    engine.export()
    alone = single_steps(engine, line, range(len(line)))
    ties = near_ties.made(alone, num_seeds=40)
    assert len(ties) > 2000

    def before(row: int) -> None:
        if row >= len(line) // 3 and engine.forward_pass == "native":
            engine.adopt(package.path)

    moved = in_company(engine, line, [random_line(length, seed=length) for length in (3, 40, 31)], before)
    assert engine.forward_pass == "compiled"
    assert torch.equal(near_ties.perturbed(moved, ties).argmax(-1), near_ties.perturbed(alone, ties).argmax(-1))
    assert torch.equal(moved, alone)


@pytest.mark.parametrize("package", [torch.float32], indirect=True, ids=str)
async def test_answers_go_on_when_their_worker_takes_the_package_up(package: Package, tmp_path: Path) -> None:
    """As it does once it has compiled while it serves."""
    loaded = load_tiny(save_tiny(package.model(), tmp_path / "model"))
    asked = [{"sampling": SamplingParams(temperature=1.5, seed=seed), "max_tokens": 150} for seed in range(4)]
    async with worker(loaded) as verifier, coordinator(verifier.address, "") as running:
        alone = [await ask(running.client, [1, 2, 3], **each, ignore_eos=True) for each in asked]
        assert loaded.engine.forward_pass == "native"
        num_moved: list[int] = []

        def take_up() -> None:
            verifier.servicer.adopt(loaded.engine, package.path)
            num_moved.append(loaded.engine.max_sessions - loaded.engine.num_free_slots)

        async def moved(arguments: dict[str, Any]) -> list[int]:
            token_ids: list[int] = []
            async for event in running.client.generate([1, 2, 3], **arguments, ignore_eos=True):
                if isinstance(event, Tokens):
                    if not token_ids and arguments is asked[0]:
                        verifier.device.submit(take_up)
                    token_ids += [token.token_id for token in event.tokens]
            return token_ids

        assert await asyncio.gather(*map(moved, asked)) == [answer.token_ids for answer in alone]
        assert loaded.engine.forward_pass == "compiled"
        assert num_moved[0] > 0


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


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
@pytest.mark.parametrize("num_own", [1, 2])
def test_a_package_that_chooses_its_threads_and_borrows_cores_computes_the_same_bits(
    package: Package, num_own: int
) -> None:
    """While it tries how many are best."""

    def found() -> Tensor:
        engine = Engine(package.model(), max_sessions=1, max_context=128)
        engine.adopt(package.path)
        slot, line = engine.acquire(), random_line(90, seed=3)
        logits = [engine.step([Job(slot, line)]).logits.clone()]
        for _ in range(30):
            line.append(7)
            logits.append(engine.step([Job(slot, line)]).logits.clone())
        return torch.cat(logits)

    alone = found()
    native.use_cores(num_own, [max(os.sched_getaffinity(0))])
    try:
        assert torch.equal(found(), alone)
    finally:
        native.use_cores(1, [])


def test_a_package_calls_the_operators_directly(package: Package) -> None:
    with zipfile.ZipFile(package.path) as files:
        (wrapper,) = (files.read(name).decode() for name in files.namelist() if name.endswith("wrapper.cpp"))
    calls = re.findall(r"(aoti_torch_cpu_\w+|call_function)\((?!Aten)", wrapper)
    angles, norm = ["elementwise", "elementwise"], "row_mean"
    layer = [norm, "linear", "ragged_attention", "linear", norm, "gated_linear"]  # first query, key and value as one
    assert sorted(calls[:3]) == sorted(f"aoti_torch_cpu_{name}" for name in [*angles, norm])
    assert calls[3:] == [f"aoti_torch_cpu_{name}" for name in [*layer[1:], norm, "linear"]]


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(), reason="this system has no huge pages"
)
def test_a_package_has_its_weights_on_huge_pages(package: Package) -> None:
    before = _wants_huge_pages()

    loaded = native.Package(package.path)
    during = _wants_huge_pages()
    weights = sum(weight.nbytes for weight in package.model().parameters())
    del loaded

    assert during - before >= weights
    assert _wants_huge_pages() == before


def _wants_huge_pages() -> int:
    """The bytes of this process's memory that the system has been asked to keep on huge pages."""
    areas = re.findall(r"^Size: +(\d+) kB.*?^VmFlags:(.*?)$", Path("/proc/self/smaps").read_text(), re.M | re.S)
    return sum(int(kilobytes) * 1024 for kilobytes, flags in areas if " hg" in flags)


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


def test_steps_of_our_own_kernels_are_not_padded(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library's kernels keep something for each size, and ours nothing: 17 tokens cost what 17 do."""
    fed: list[int] = []

    class Recorded(native.Package):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            run = self.run

            def recorded(inputs: list[Tensor]) -> list[Tensor]:
                fed.append(len(inputs[0]))
                return run(inputs)

            self.run = recorded

    monkeypatch.setattr(native, "Package", Recorded)
    engine = Engine(package.model(), max_sessions=2, max_context=64)
    engine.adopt(package.path)
    engine.step([Job(engine.acquire(), random_line(17, seed=1))])
    assert engine.batch_invariant
    assert fed == [17]


@pytest.mark.parametrize("package", [torch.float32], indirect=True, ids=str)
def test_a_pass_that_nobody_wants_any_more_computes_nothing(package: Package) -> None:
    engine = Engine(package.model(), max_sessions=1, max_context=64)
    engine.adopt(package.path)
    slot, line = engine.acquire(), random_line(9, seed=1)
    Sampler(engine.vocab_size, 1, engine.device, tables=engine.tables).open(slot.index, SamplingParams(), line, [])
    engine.step([Job(slot, line[:-1])])
    tree = SpeculationTree(len(line) - 1, line[-1])
    log_acceptances = [math.log(each) for each in DRAFT_PROBABILITIES]
    outlook = Outlook(tree.root, [tree.root], 2, 90, 60, -math.inf, log_acceptances)
    job = LevelsJob(slot, line, outlook, engine.vocab_size, 8)

    [place], cache = slot.places([len(line) - 1]), engine.model.cache

    def drafted(num_void: int) -> tuple[int, Tensor]:
        """How many levels come out, and the key and the value of the token at the line's end then."""
        interruption = Interruption(torch.tensor([0, num_void]), 0, 0)
        with engine.level_loop([job], engine.tables, [1e-3] * 16, interruption) as loop:
            assert loop is not None
            output = loop.draft(Burst(2, 60.0))
        return len(output.levels), torch.cat([each[place].flatten() for each in (*cache.keys, *cache.values)])

    num_levels, nothing = drafted(num_void=1)
    assert num_levels == 0
    assert slot.cached_prefix == line[:-1]
    num_levels, computed = drafted(num_void=0)
    assert num_levels == 2
    assert slot.cached_prefix == line
    assert not torch.equal(nothing, computed)
