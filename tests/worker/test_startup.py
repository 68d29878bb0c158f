"""What a worker does with a model that cannot be compiled."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from structlog.testing import capture_logs

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.compile.just_in_time import CompiledForward
from outrider.engine.engine import Engine
from outrider.engine.gpu.trial import small_step
from outrider.engine.jobs import Job
from outrider.worker.config import WorkerConfig
from outrider.worker.forward_pass import compiles, warm_up, why_not_compiled
from tests.e2e.stack import load_tiny, save_tiny
from tests.engine.tiny_models import build


@pytest.fixture
def stubborn(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine whose model breaks the compiler's graph, so that no step can be captured."""
    model = build("llama", layers=1)
    engine = Engine(model, max_sessions=1, max_context=32)
    decoder = engine._model.decoder
    compiled = decoder.calling(torch.compile(model, fullgraph=True, dynamic=False, backend="eager"))
    engine._model.forwards.insert(0, CompiledForward(compiled))
    monkeypatch.setattr(engine._model, "_graphs", SimpleNamespace(buckets=(4,)))
    monkeypatch.setattr(engine._model, "capture", lambda size: compiled.run(small_step(0, 1), size, size))
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


def check_step(engine: Engine) -> None:
    line = [3, 1, 4]
    logits = engine.step([Job(engine.acquire(), line)]).logits
    with torch.inference_mode():
        expected = build("llama", layers=1)(input_ids=torch.tensor([line]), use_cache=False).logits[0, -1:]
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("choice", ["auto", "on"])
def test_without_the_kernels_of_a_gpu_it_runs_eagerly_and_says_so(choice: str) -> None:
    engine = Engine(build("llama", layers=1), max_sessions=1, max_context=32, captured=True)
    reason = "steps are compiled and captured with attention tree alone, and it is torch"
    if choice == "on":
        with pytest.raises(UnsupportedModelError, match=f"--compile on: {reason}; or use --compile off"):
            why_not_compiled(engine, choice)
    else:
        assert why_not_compiled(engine, choice) == [reason]
    assert engine.forward_pass == "eager"
    check_step(engine)


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


def test_a_model_that_takes_a_single_token_is_refused_in_words(tmp_path: Path) -> None:
    model = build("llama", layers=1)
    model.config.max_position_embeddings = 1
    folder = save_tiny(model, tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match=r"takes 1 token \(max_position_embeddings\), which leaves no room"):
        load_tiny(folder)
