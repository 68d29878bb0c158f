"""How much memory a worker gives to keys and values."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.engine import STEP_TOKENS_MAX, Engine, StepOutput
from outrider.engine.jobs import Job
from outrider.engine.load.checkpoint import read_checkpoint
from outrider.engine.sample.sampler import Row, Sampler
from outrider.worker import building, memory, step_peak
from outrider.worker.config import KV_MEMORY_PATTERN
from outrider.worker.memory import Demand
from outrider.worker.step_peak import step_peak_bytes
from tests.e2e.stack import load_tiny, save_tiny
from tests.engine.tiny_models import VOCAB_SIZE, build

CPU = torch.device("cpu")
GIB = 2**30
ROOM = 8 * GIB


@pytest.mark.parametrize(
    ("setting", "num_bytes"),
    [("2GiB", 2 * GIB), ("500MB", 500_000_000), ("1.5 gib", 3 * GIB // 2), ("64KiB", 65536), ("50%", 4 * GIB)],
)
def test_a_size_or_a_share(setting: str, num_bytes: int) -> None:
    assert re.match(KV_MEMORY_PATTERN, setting)
    assert memory.kv_bytes(setting, ROOM, Demand(1, 1)) == num_bytes


@pytest.mark.parametrize(
    ("session", "sessions", "num_bytes"),
    [
        (GIB // 64, GIB, GIB),  # all that could be needed
        (GIB, 64 * GIB, 4 * GIB),  # half of the room
        (6 * GIB, 64 * GIB, 6 * GIB),  # one session needs more than that
        (9 * GIB, 64 * GIB, 8 * GIB),  # more than there is: the engine refuses it in words
    ],
)
def test_left_to_itself_it_takes_what_could_be_needed_or_a_share(session: int, sessions: int, num_bytes: int) -> None:
    assert memory.kv_bytes("auto", ROOM, Demand(session, sessions)) == num_bytes


@pytest.mark.parametrize(
    ("peak", "session", "sessions", "num_bytes"),
    [
        (0, GIB, 64 * GIB, int(8 * GIB * 0.88)),
        (2 * GIB, GIB, 64 * GIB, int(8 * GIB * 0.88) - 2 * GIB),
        (2 * GIB, GIB, 3 * GIB, 3 * GIB),  # all that could be needed
        (2 * GIB, 6 * GIB, 64 * GIB, 6 * GIB),  # one session needs more than that share: all but the peak
        (2 * GIB, 7 * GIB, 64 * GIB, 6 * GIB),  # more than there is: the engine refuses it in words
        (9 * GIB, GIB, 64 * GIB, -GIB),  # a step does not fit, even without any keys
    ],
)
def test_where_the_peak_of_a_step_is_known_nearly_all_the_rest_is_taken(
    peak: int, session: int, sessions: int, num_bytes: int
) -> None:
    assert memory.kv_bytes("auto", ROOM, Demand(session, sessions), peak) == num_bytes


def test_a_size_is_a_size_whatever_a_step_takes() -> None:
    assert memory.kv_bytes("2GiB", ROOM, Demand(1, 1), 7 * GIB) == 2 * GIB
    assert memory.kv_bytes("50%", ROOM, Demand(1, 1), 7 * GIB) == 4 * GIB


class Gpu:
    """What torch tells of a GPU's memory, for a model on a CPU that is taken for one: each step has taken 7 bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_resets = 0
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self._reset)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 107 if self.num_resets else 999)

    def _reset(self, device: torch.device) -> None:
        self.num_resets += 1


def test_the_peak_is_that_of_a_full_step_and_its_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(monkeypatch)
    steps: list[tuple[int, int]] = []
    step, choose = Engine.step, Sampler.choose

    def noting_step(engine: Engine, jobs: Sequence[Job]) -> StepOutput:
        output = step(engine, jobs)
        assert all(output.num_rows)
        steps.append((sum(1 + len(job.token_ids) for job in jobs), len(output.logits)))
        return output

    def noting_choice(sampler: Sampler, logits: Tensor, rows: Sequence[Row]) -> list[int]:
        steps.append((0, len(logits)))
        return choose(sampler, logits, rows)

    monkeypatch.setattr(Engine, "step", noting_step)
    monkeypatch.setattr(Sampler, "choose", noting_choice)
    assert step_peak_bytes(build("llama", layers=1), 64) is None, "a CPU's is not measured"
    model = build("llama", layers=1)
    monkeypatch.setattr(step_peak, "_is_measured", lambda device: True)
    assert step_peak_bytes(model, 64) == 7
    most = 2 * (min(VOCAB_SIZE, STEP_TOKENS_MAX // 2 - 1) + 1)
    assert steps == [(most, min(most, 64 * 9)), (0, min(most, 64 * 9))]
    steps.clear()
    step_peak_bytes(model, 2)
    assert steps == [(most, 18), (0, 18)]


def test_a_step_that_finds_no_room_is_no_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(monkeypatch)

    def fail(engine: Engine, jobs: Sequence[Job]) -> StepOutput:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step_peak, "_is_measured", lambda device: True)
    monkeypatch.setattr(Engine, "step", fail)
    assert step_peak_bytes(build("llama", layers=1), 2) is None


def test_room_is_what_the_limit_leaves_beside_weights_and_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda: 8 * GIB)
    left = 5 * GIB - memory.PROCESS_BYTES
    assert memory.room_bytes(CPU, 3 * GIB, 1.0) == left
    assert memory.room_bytes(CPU, 3 * GIB, 0.25) == left // 4
    assert memory.room_bytes(CPU, 9 * GIB, 1.0) == 0


def test_room_does_not_depend_on_what_is_free() -> None:
    before = memory.room_bytes(CPU, GIB, 0.5)
    held = torch.ones(2**28, dtype=torch.uint8)
    assert memory.room_bytes(CPU, GIB, 0.5) == before > 0
    del held


@pytest.mark.parametrize("setting", ["", "2", "lots", "-1GiB", "GiB", "5 %%", "auto "])
def test_what_is_no_size_is_refused(setting: str) -> None:
    assert not re.match(KV_MEMORY_PATTERN, setting)


def test_the_limit_and_the_bound_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer of two heads of eight: 128 bytes a token."""
    folder = save_tiny(build("llama", layers=1), tmp_path)
    monkeypatch.setattr(memory, "memory_limit", lambda: memory.PROCESS_BYTES + 10 * 2**20)
    with capture_logs() as logs:
        loaded = load_tiny(folder, max_context=1000, memory_share=0.5)
    [said] = [log for log in logs if log["event"] == "memory"]
    num_tokens = loaded.engine.blocks.num_blocks * loaded.engine.blocks.block_cells
    assert loaded.info.kv_cache_bytes == num_tokens * 128
    assert 2.4 * 2**20 < loaded.info.kv_cache_bytes <= 2.5 * 2**20
    assert loaded.info.memory_limit_bytes == memory.PROCESS_BYTES + 10 * 2**20
    assert said["limit_megabytes"] == round(loaded.info.memory_limit_bytes / 1e6, 1)
    assert (said["kv_megabytes_max"], said["kv_tokens_max"]) == (round(num_tokens * 128 / 1e6, 1), num_tokens)


def test_a_worker_has_the_memory_that_it_was_given(tmp_path: Path) -> None:
    """One layer of two heads of eight: 128 bytes a token."""
    folder = save_tiny(build("llama", layers=1), tmp_path)
    engine = load_tiny(folder, kv_memory="1MiB", max_context=100).engine
    assert engine.kv_bytes_per_token == 128
    assert engine.blocks.num_blocks * engine.blocks.block_cells == 2**20 // 128


@pytest.mark.parametrize(
    ("dtype", "held", "is_refused"),
    [("auto", 1.0, False), ("auto", 0.99, True), ("bfloat16", 0.5, False), ("bfloat16", 0.49, True)],
)
def test_weights_that_find_no_room_are_refused_before_they_are_read(
    dtype: str, held: float, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`held` is what the process may use of what the float32 weights are on disk."""
    folder = save_tiny(build("llama", layers=1), tmp_path)
    stored = sum(tensor.end - tensor.begin for tensor in read_checkpoint(folder))
    monkeypatch.setattr(memory, "memory_limit", lambda: math.ceil(stored * held))

    def read(*_: object, **__: object) -> None:
        raise InterruptedError("the weights are read")

    monkeypatch.setattr(building, "load_weights", read)
    refused = pytest.raises(UnsupportedModelError, match=r"take \S+ GB, and this process may use \S+ GB; allow it more")
    with refused if is_refused else pytest.raises(InterruptedError):
        load_tiny(folder, dtype=dtype)


def test_memory_for_less_than_one_session_is_refused_in_words(tmp_path: Path) -> None:
    folder = save_tiny(build("llama", layers=1), tmp_path)
    with pytest.raises(UnsupportedModelError, match="raise --kv-memory or lower --max-context"):
        load_tiny(folder, kv_memory="1KiB")
