"""What a worker does with a model that cannot be compiled."""

from __future__ import annotations

import pytest
import torch
from structlog.testing import capture_logs

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.attention.interface import model_facts
from outrider.engine.compile.decoder import Decoder
from outrider.engine.compile.just_in_time import CompiledForward
from outrider.engine.engine import Engine
from outrider.engine.jobs import Job
from outrider.worker.config import WorkerConfig
from outrider.worker.forward_pass import compiles, warm_up
from tests.engine.tape import Tape
from tests.engine.tiny_models import build


@pytest.fixture
def stubborn() -> Engine:
    """An engine whose model breaks the compiler's graph, so that no step of a compiled size runs."""
    model = build("llama", layers=1)
    engine = Engine(model, max_sessions=1, max_context=32)
    decoder = engine._model.decoder
    compiled = decoder.calling(torch.compile(model, fullgraph=True, dynamic=False, backend="eager"))
    engine._model.forwards.insert(0, CompiledForward(compiled))
    model.get_submodule("model.layers.0").register_forward_pre_hook(lambda *_: torch._dynamo.graph_break())
    return engine


def test_where_compiling_is_wanted_it_is_refused_in_words(stubborn: Engine) -> None:
    with pytest.raises(UnsupportedModelError, match=r"cannot be compiled \(Unsupported: .*\); use --compile off"):
        warm_up(stubborn, "on")
    assert stubborn.num_free_slots == 1


def test_where_the_worker_chooses_it_runs_eagerly_and_says_so(stubborn: Engine) -> None:
    with capture_logs() as logs:
        warm_up(stubborn, "auto")
    assert [(log["log_level"], log["event"]) for log in logs] == [("warning", "not compiled")]
    assert "cannot be compiled" in logs[0]["reason"]
    assert stubborn.forward_pass == "eager"
    check_step(stubborn)


@pytest.fixture
def on_a_tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    """What a model's steps are captured with: a CPU passes for a GPU."""
    tape = Tape()
    monkeypatch.setattr("outrider.engine.model.CudaRecorder", lambda device: tape)
    monkeypatch.setattr(
        "outrider.engine.engine.model_facts", lambda model, *, captures: model_facts(model, captures=True)
    )
    return tape


def test_what_cannot_be_compiled_is_captured_as_it_is(on_a_tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no C compiler: Triton fails when it first compiles."""

    def failing(decoder: Decoder) -> Decoder:
        def fail(**_: object) -> None:
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

        return decoder.calling(fail)

    monkeypatch.setattr("outrider.engine.model.compile_decoder", failing)
    engine = Engine(build("llama", layers=1), max_sessions=1, max_context=32, compiled=True)
    with capture_logs() as logs:
        [reason] = warm_up(engine, "auto")
    assert "Failed to find C compiler" in reason
    assert [log["event"] for log in logs if log["log_level"] == "warning"] == ["not compiled"]
    assert engine.forward_pass == "graph, eager"
    check_step(engine)
    assert on_a_tape.num_replays == 1


def test_without_a_compiler_small_steps_are_captured_from_the_first(on_a_tape: Tape) -> None:
    engine = Engine(build("llama", layers=1), max_sessions=1, max_context=32, captured=True)
    assert warm_up(engine, "auto") == []
    assert engine.forward_pass == "graph, eager"
    check_step(engine)
    assert on_a_tape.num_replays == 1


def test_what_can_be_neither_compiled_nor_captured_runs_eagerly(
    on_a_tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(build("llama", layers=1), max_sessions=1, max_context=32, captured=True)

    def fail(num_tokens: int) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(engine._model, "capture", fail)
    reasons = warm_up(engine, "auto")
    assert all("not permitted when stream is capturing" in reason for reason in reasons)
    assert engine.forward_pass == "eager"
    check_step(engine)
    assert on_a_tape.num_replays == 0


def check_step(engine: Engine) -> None:
    line = [3, 1, 4]
    logits = engine.step([Job(engine.acquire(), line)]).logits
    with torch.inference_mode():
        expected = build("llama", layers=1)(input_ids=torch.tensor([line]), use_cache=False).logits[0, -1:]
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("backend", ["torch", "one-by-one"])
def test_a_compiled_pass_on_a_cpu_is_not_made_for_another_attention_backend(backend: str) -> None:
    settings = {"model": "m", "listen": "", "attention_backend": backend}
    with pytest.raises(
        UnsupportedModelError, match=rf"--compile on: .* native, not by {backend}; or use --compile off"
    ):
        compiles(WorkerConfig.model_validate({**settings, "compile": "on"}), torch.device("cpu"))
    with capture_logs() as logs:
        assert not compiles(WorkerConfig.model_validate({**settings, "compile": "auto"}), torch.device("cpu"))
    assert backend in logs[0]["reason"]
