"""Captured steps compute what other steps compute, recorded once from padding alone and replayed for all.

A `Tape` stands for CUDA's capture, and the kernels are interpreted; `tests/gpu/test_gpu_graphs.py` runs the same on a
device that has both.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from outrider.engine import model as ragged_model
from outrider.engine.attention.tree import TreeAttention
from outrider.engine.batch import COMPILED_TOKENS_MAX
from outrider.engine.compile.graphs import Pass, StepGraphs
from outrider.engine.compile.just_in_time import compiler_problem
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job
from tests.engine import histories
from tests.engine.gpu.test_tree_backend import replaying, rig_of
from tests.engine.histories import CPU, random_line
from tests.engine.tape import Tape
from tests.engine.tiny_models import build

pytestmark = pytest.mark.usefixtures("launches", "willing")


def test_any_replayed_history_equals_a_fresh_start() -> None:
    rig = rig_of("mistral")
    tape = replaying(rig, [8, 4, 2, 1])
    histories.any_history_equals_a_fresh_start(rig, num_sessions=1)
    assert tape.num_replays > 4


def test_replayed_steps_in_float16() -> None:
    rig = rig_of("qwen3", dtype=torch.float16)
    tape = replaying(rig, [16])
    histories.a_tree_equals_its_branches_alone(rig)
    assert tape.num_replays > 0


def test_logits_outlive_the_next_step() -> None:
    rig = rig_of("llama")
    tape = replaying(rig, [1])
    slot, line = rig.engine.acquire(), random_line(5, seed=1)
    rig.engine.step([Job(slot, line)])
    found: list[Tensor] = []
    for token_id in (3, 4):  # two replays of one recording
        line.append(token_id)
        found.append(rig.engine.step([Job(slot, line)]).logits[0])
    assert tape.num_replays == 2
    rig.close(torch.stack(found), rig.reference(line)[5:])


def test_large_batches_and_long_contexts_run_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = rig_of("mistral")
    tape = replaying(rig, [4, 1])
    slot, other = rig.engine.acquire(), rig.engine.acquire()
    line, other_line = random_line(5, seed=1), random_line(3, seed=2)
    rig.close(rig.engine.step([Job(slot, line)]).logits[0], rig.reference(line)[-1])
    assert (tape.num_replays, rig.engine.path) == (0, "eager")
    line.append(5)
    rig.close(rig.engine.step([Job(slot, line)]).logits[0], rig.reference(line)[-1])
    assert (tape.num_replays, rig.engine.path) == (1, "graph")
    line.append(6)
    monkeypatch.setattr("outrider.engine.attention.tree.PARTS_PER_TOKEN", 0)
    logits = rig.engine.step([Job(slot, line), Job(other, other_line)]).logits
    assert (tape.num_replays, rig.engine.path) == (1, "eager")
    rig.close(logits[0], rig.reference(line)[-1])
    rig.close(logits[1], rig.reference(other_line)[-1])


def test_a_step_that_fails_half_way_leaves_no_trace() -> None:
    """The batch is on the device."""
    rig = rig_of("llama")
    tape = replaying(rig, [8, 1])
    slot, line = rig.engine.acquire(), random_line(6, seed=3)
    rig.engine.step([Job(slot, line, [LINE_END, LINE_END], [1, 2], wanted=[0, 1])])
    line.append(2)
    (graphs, _) = rig.engine._model.forwards
    assert isinstance(graphs, StepGraphs)
    broken = dict(graphs._passes)

    def fail() -> Tensor:
        raise RuntimeError("half way")

    graphs._passes = dict.fromkeys(broken, fail)
    with pytest.raises(RuntimeError, match="half way"):
        rig.engine.step([Job(slot, line, [LINE_END], [3], wanted=[0])])
    assert slot.cached_prefix == []
    graphs._passes = broken
    logits = rig.engine.step([Job(slot, line, [LINE_END], [3], wanted=[0])]).logits
    assert tape.num_replays == 2
    rig.close(logits[0], rig.reference([*line, 3])[-1])


@pytest.mark.parametrize(("family", "bad"), [("llama", 3e38), ("gemma2", float("inf")), ("gpt_oss", float("nan"))])
def test_one_session_of_nonsense_does_not_reach_its_neighbours(family: str, bad: float) -> None:
    """Keys and values of one token are no numbers, fed in a large step and in a small one."""
    rig = rig_of(family)
    tape = replaying(rig, [1, 2])
    poison, spoiled = 60, rig.engine._model.decoder.model.get_input_embeddings()
    with torch.no_grad():
        spoiled.weight[poison] = bad  # type: ignore[index]
    sick, well = rig.engine.acquire(), rig.engine.acquire()
    sick_line, well_line = [poison] * 3, [token % poison for token in random_line(3, seed=1)]
    rig.engine.step([Job(sick, sick_line)])
    rig.engine.step([Job(well, well_line)])
    for token_id in (3, 4):
        sick_line.append(poison)
        well_line.append(token_id)
        logits = rig.engine.step([Job(sick, sick_line), Job(well, well_line)]).logits
        rig.close(logits[1, :poison], rig.reference(well_line)[-1, :poison])  # tied weights spoil that token's logit
    assert tape.num_replays == 2
    assert all(cache.isfinite().all() for cache in rig.engine._model.cache.storages)


def test_a_pass_that_waits_for_its_device_cannot_be_recorded() -> None:
    with pytest.raises(RuntimeError, match="waits for the device"):
        Tape()(lambda: torch.ones(2) * torch.ones(1).item())


def test_steps_are_captured_also_where_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    tape = Tape()
    monkeypatch.setattr(ragged_model, "CudaRecorder", lambda device: tape)
    monkeypatch.setattr(TreeAttention, "buckets", (4, 2, 1))
    rig = rig_of("gpt2", captured=True)
    assert rig.engine.captures
    assert list(rig.engine.warm_up()) == [4, 2, 1]
    assert rig.engine.forward_pass == "graph, eager"
    slot, line = rig.engine.acquire(), random_line(3, seed=1)
    rig.close(rig.engine.step([Job(slot, line)]).logits[0], rig.reference(line)[-1])
    rig.engine.run_eagerly()
    assert (rig.engine.attention, rig.engine.forward_pass, rig.engine.captures) == ("tree", "eager", False)
    line.append(5)
    rig.close(rig.engine.step([Job(slot, line)]).logits[0], rig.reference(line)[-1])
    assert tape.num_replays == 1


@pytest.mark.skipif(compiler_problem(CPU) != "", reason=compiler_problem(CPU))
def test_what_was_compiled_for_a_size_serves_captured_and_other_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a context too long for a graph compiles nothing while a worker serves. Compiled for real, in two sizes; a step
    too large to be compiled runs eagerly."""

    def recorded(run: Pass) -> Pass:
        run()
        return run

    monkeypatch.setattr(ragged_model, "CudaRecorder", lambda device: recorded)
    monkeypatch.setattr(TreeAttention, "buckets", (2, 1))
    reference = build("gpt2", layers=1)
    engine = Engine(build("gpt2", layers=1), max_sessions=1, max_context=64, attention="tree", compiled=True)
    counters.clear()
    assert list(engine.warm_up()) == [2, 1]
    slot, line = engine.acquire(), random_line(COMPILED_TOKENS_MAX + 1, seed=3)

    def step(num_more: int, path: str) -> None:
        line.extend(random_line(num_more, seed=num_more))
        logits = engine.step([Job(slot, line)]).logits
        with torch.inference_mode():
            expected = reference(input_ids=torch.tensor([line]), use_cache=False).logits[0, -1:]
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)
        assert engine.path == path

    step(0, "eager")
    for path in ("graph", "compiled"):
        step(1, path)
        step(2, path)
        engine.model.forwards = [each for each in engine.model.forwards if not isinstance(each, StepGraphs)]
    assert counters["stats"]["unique_graphs"] == 2
