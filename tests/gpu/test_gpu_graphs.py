"""Small steps as captured CUDA graphs compute what transformers computes on the same device.

`tests/engine/gpu/test_graphs.py` runs such steps without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from triton.runtime import driver

from outrider.engine.attention.tree import TreeAttention
from outrider.engine.batch import CAPTURED_SIZES, COMPILED_TOKENS_MAX
from outrider.engine.compile.graphs import CudaRecorder, Pass
from outrider.engine.engine import Engine
from outrider.engine.gpu import launcher
from outrider.engine.gpu.driver import LibcudaDriver
from outrider.engine.gpu.trial import CAPABILITY_MIN
from outrider.engine.jobs import LINE_END, Job
from tests.engine import histories
from tests.engine.gpu.launches import forget_compiled
from tests.engine.histories import HALF_FAMILIES, HALF_TOLERANCES, Rig, built, random_line
from tests.engine.tape import graphed
from tests.engine.tiny_models import FAMILIES
from tests.gpu.device import CUDA, never_waiting, on_cuda

pytestmark = on_cuda(CAPABILITY_MIN)


class CountingRecorder:
    """Captures on the device, and counts the replays."""

    def __init__(self) -> None:
        self.num_replays = 0
        self._record = CudaRecorder(CUDA)

    def __call__(self, run: Pass) -> Pass:
        replay = self._record(run)

        def counted() -> torch.Tensor:
            self.num_replays += 1
            return replay()

        return counted


def captured(family: str, dtype: torch.dtype = torch.float32) -> tuple[Rig, CountingRecorder]:
    """A rig whose small steps are captured without having been compiled."""
    rig = Rig(family, device=CUDA, dtype=dtype, attention=TreeAttention.name, captured=True)
    recorder = CountingRecorder()
    graphed(rig.engine, recorder)
    return rig, recorder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "history",
    [
        histories.a_tree_equals_its_branches_alone,
        histories.sessions_in_one_step_equal_each_alone,
        histories.masks_of_every_width_stand_side_by_side,
    ],
)
def test_replayed_steps_of_each_family(history: Callable[[Rig], None], family: str) -> None:
    rig, recorder = captured(family)
    history(rig)
    assert recorder.num_replays > 0


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral", "gpt2"])
def test_any_replayed_history_equals_a_fresh_start(family: str) -> None:
    rig, recorder = captured(family)
    histories.any_history_equals_a_fresh_start(rig)
    assert recorder.num_replays > 100


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels are launched as where there is no C compiler."""
    monkeypatch.setattr(launcher, "compiler_problem", lambda: "there is none")
    monkeypatch.setattr(driver, "_active", None)
    launcher._take_driver.cache_clear()
    forget_compiled()
    yield
    assert isinstance(driver.active, LibcudaDriver)
    forget_compiled()
    launcher._take_driver.cache_clear()


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_steps_are_captured_without_a_compiler(family: str) -> None:
    rig, recorder = captured(family, torch.bfloat16)
    histories.a_tree_equals_its_branches_alone(rig)
    histories.masks_of_every_width_stand_side_by_side(rig)
    assert recorder.num_replays > 0


@pytest.mark.parametrize("dtype", HALF_TOLERANCES, ids=str)
@pytest.mark.parametrize("family", HALF_FAMILIES)
def test_replayed_steps_in_16_bits(family: str, dtype: torch.dtype) -> None:
    rig, recorder = captured(family, dtype)
    histories.a_tree_equals_its_branches_alone(rig)
    histories.masks_of_every_width_stand_side_by_side(Rig(family, device=CUDA, dtype=dtype))
    assert recorder.num_replays > 0


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_a_replayed_step_never_waits_for_the_device(family: str) -> None:
    rig, recorder = captured(family)
    slot, other = rig.engine.acquire(), rig.engine.acquire()
    line, other_line = random_line(5, seed=1), random_line(3, seed=2)
    with never_waiting():
        rig.engine.step([Job(slot, line, [LINE_END, LINE_END, 1], [1, 2, 3], wanted=range(-1, 3))])
        line.append(2)
        logits = rig.engine.step([Job(slot, line, [LINE_END], [3], wanted=[0]), Job(other, other_line)]).logits
    assert recorder.num_replays == 2
    rig.close(logits[0], rig.reference([*line, 3])[-1])
    rig.close(logits[1], rig.reference(other_line)[-1])


def test_steps_queued_faster_than_they_run_keep_their_own_numbers() -> None:
    """Nobody waits between them: each step's copy must have left before its memory is written again."""
    rig, recorder = captured("llama")
    slot, line = rig.engine.acquire(), random_line(4, seed=1)
    found: list[torch.Tensor] = []
    torch.cuda._sleep(200_000_000)
    with never_waiting():
        for token_id in range(40):
            line.append(token_id)
            found.append(rig.engine.step([Job(slot, line)]).logits[0])
    assert recorder.num_replays == 40
    rig.close(torch.stack(found), rig.reference(line)[4:])


def test_caches_stay_where_they_were_captured() -> None:
    rig, _ = captured("llama")
    caches = rig.engine._model.cache.storages
    places = [cache.data_ptr() for cache in caches]
    histories.any_history_equals_a_fresh_start(rig)
    assert [cache.data_ptr() for cache in caches] == places


def test_large_batches_run_beside_replayed_ones() -> None:
    rig, recorder = captured("gemma3")
    slot, line = rig.engine.acquire(), random_line(COMPILED_TOKENS_MAX + 1, seed=1)
    for _ in range(3):
        rig.close(rig.engine.step([Job(slot, line)]).logits[0], rig.reference(line)[-1])
        line.append(5)
        rig.close(rig.engine.step([Job(slot, line)]).logits[0], rig.reference(line)[-1])
        line.extend(random_line(COMPILED_TOKENS_MAX + 1, seed=2))
    assert recorder.num_replays == 3


def test_two_engines_capture_and_replay_beside_each_other() -> None:
    first, _ = captured("llama")
    second, _ = captured("qwen3")
    for rig in (first, second, first):
        slot, line = rig.engine.acquire(), random_line(6, seed=1)
        rig.close(rig.engine.step([Job(slot, line)]).logits[0], rig.reference(line)[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "gemma3", "gemma2"])
def test_compiled_and_captured(family: str, dtype: torch.dtype) -> None:
    """As a worker does it: warm-up compiles and captures each size. Models that run fused are not compiled."""
    rig = Rig(family, device=CUDA, dtype=dtype)
    engine = Engine(built(family, CUDA, dtype), max_sessions=4, max_context=128, compiled=True)
    assert list(engine.warm_up()) == list(CAPTURED_SIZES[::-1])
    rig.engine = engine
    histories.a_tree_equals_its_branches_alone(rig)
    histories.sessions_in_one_step_equal_each_alone(rig)
    engine.run_eagerly()
    slot, line = engine.acquire(), random_line(9, seed=1)
    rig.close(engine.step([Job(slot, line)]).logits[0], rig.reference(line)[-1])
