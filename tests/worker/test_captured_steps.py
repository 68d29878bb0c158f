"""What a worker on a GPU does with steps that cannot be compiled, or not captured: a CPU that interprets kernels passes
for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton, which there is for Linux alone")

from structlog.testing import capture_logs

from outrider.engine import model as ragged_model
from outrider.engine.attention.tree import TreeAttention
from outrider.engine.compile.decoder import Decoder
from outrider.engine.engine import Engine
from outrider.engine.jobs import Job
from outrider.worker.forward_pass import warm_up, why_not_compiled
from tests.engine.gpu.interpreter import interpreted
from tests.engine.gpu.launches import KERNELS, logged
from tests.engine.tape import SMALL_SIZES, Tape
from tests.engine.tiny_models import build


@pytest.fixture
def on_a_tape(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tape]:
    """What a model's steps are captured with, in few sizes."""
    tape = Tape()
    monkeypatch.setattr(ragged_model, "CudaRecorder", lambda device: tape)
    monkeypatch.setattr(TreeAttention, "problem", classmethod(lambda cls, facts: ""))
    monkeypatch.setattr(TreeAttention, "buckets", SMALL_SIZES[2::-1])
    with interpreted(*KERNELS), logged():
        yield tape


def test_what_cannot_be_compiled_is_captured_as_it_is(on_a_tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Triton fails when it first compiles."""

    def failing(decoder: Decoder) -> Decoder:
        def fail(**_: object) -> None:
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

        return decoder.calling(fail)

    monkeypatch.setattr(ragged_model, "compile_decoder", failing)
    engine = Engine(build("gpt2", layers=1), max_sessions=1, max_context=32, compiled=True)
    with capture_logs() as logs:
        [reason] = warm_up(engine, "auto")
    assert "Failed to find C compiler" in reason
    assert [log["event"] for log in logs if log["log_level"] == "warning"] == ["not compiled"]
    assert engine.forward_pass == "graph, eager"
    check_step(engine)
    assert on_a_tape.num_replays == 1


def test_small_steps_are_captured_from_the_first(on_a_tape: Tape) -> None:
    engine = Engine(build("gpt2", layers=1), max_sessions=1, max_context=32, captured=True)
    assert why_not_compiled(engine, "on") == []
    assert engine.forward_pass == "graph, eager"
    check_step(engine)
    assert on_a_tape.num_replays == 1


def test_what_can_be_neither_compiled_nor_captured_runs_eagerly(
    on_a_tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(build("gpt2", layers=1), max_sessions=1, max_context=32, captured=True)

    def fail(num_tokens: int) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(engine._model, "capture", fail)
    reasons = warm_up(engine, "auto")
    assert len(reasons) == 2
    assert all("not permitted when stream is capturing" in reason for reason in reasons)
    assert (engine.attention, engine.forward_pass) == ("tree", "eager")
    check_step(engine)
    assert on_a_tape.num_replays == 0


def check_step(engine: Engine) -> None:
    line = [3, 1, 4]
    logits = engine.step([Job(engine.acquire(), line)]).logits
    with torch.inference_mode():
        expected = build("gpt2", layers=1)(input_ids=torch.tensor([line]), use_cache=False).logits[0, -1:]
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)
