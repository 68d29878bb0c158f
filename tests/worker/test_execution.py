"""A worker says what its steps run on, and why nothing faster does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from outrider.core.protocol.messages import ModelInfo
from outrider.engine.attention.interface import ModelFacts
from outrider.engine.engine import Engine
from outrider.engine.gpu import launcher
from outrider.engine.load.probe import LayerFacts
from outrider.engine.sample import fused
from outrider.worker import execution
from outrider.worker.config import WorkerConfig
from outrider.worker.execution import UNPROVEN, not_taken, said, token_choice, unproven
from tests.e2e.stack import load_tiny, save_tiny
from tests.engine.tiny_models import build

LAYER = LayerFacts(num_heads=2, num_kv_heads=2, key_size=64, value_size=64, window=None)
ON_GPU = ModelFacts([LAYER], torch.float32, torch.device("cuda"))


def test_the_start_and_the_model_info_say_what_runs(tmp_path: Path) -> None:
    folder = save_tiny(build("llama", layers=1), tmp_path)
    with capture_logs() as logs:
        info = load_tiny(folder, attention_backend="torch").info
    [told] = [log for log in logs if log["event"] == "runs on"]
    assert (info.attention, info.forward_pass) == ("torch", "eager")
    assert info.token_choice in ("torch", "native")  # native where an earlier test has loaded it
    assert info.not_taken == ()
    assert told.items() >= {"attention": "torch", "forward_pass": "eager", "token_choice": info.token_choice}.items()
    assert not {"not_taken", "unproven"} & told.keys()
    assert info.unproven == ""


def test_what_no_gpu_has_run_is_called_so() -> None:
    assert unproven(torch.device("cpu")) == ""
    info = ModelInfo("", "", 0, "", (), 0, 0, 0, "", "cuda:0", 3, "", unproven=unproven(torch.device("cuda:0")))
    assert said(info)["unproven"] == UNPROVEN


def test_on_a_gpu_each_faster_part_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(build("llama", layers=1), max_sessions=1, max_context=32)
    monkeypatch.setattr(fused, "problem", lambda device: "the package triton is not installed")
    found = list(not_taken(engine, ON_GPU, ["there is no C compiler"]))
    assert found[0].startswith("attention tree: kernels in Triton need a CUDA device")
    assert found[1:] == [
        "fused layers: they are for attention tree, and it is torch",
        "forward pass: there is no C compiler",
        "choice of tokens: the package triton is not installed",
    ]
    assert token_choice(torch.device("cuda")) == "torch"
    monkeypatch.setattr(fused, "problem", lambda device: "")
    assert token_choice(torch.device("cuda")) == "triton"


def test_without_a_c_compiler_it_says_what_launches_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(build("llama", layers=1), max_sessions=1, max_context=32)
    monkeypatch.setattr(execution, "triton_problem", lambda device: "")
    monkeypatch.setattr(launcher, "compiler_problem", lambda: "there is no C compiler; install gcc")
    said_of_launchers = [each for each in not_taken(engine, ON_GPU, []) if each.startswith("launchers of Triton")]
    assert said_of_launchers == [
        "launchers of Triton, without which nothing is compiled and kernels go by libcuda: "
        "there is no C compiler; install gcc"
    ]
    monkeypatch.setattr(launcher, "compiler_problem", lambda: "")
    assert not any("launchers" in each for each in not_taken(engine, ON_GPU, []))


def test_what_compilers_make_on_a_gpu_lies_in_the_compile_cache() -> None:
    settings = {"model": "m", "listen": "", "compile_cache": Path("/cache")}
    assert WorkerConfig.model_validate(settings).compiler_environment() == {}
    assert WorkerConfig.model_validate(settings | {"device": "cuda:1"}).compiler_environment() == {
        "TORCHINDUCTOR_CACHE_DIR": "/cache/inductor",
        "TRITON_CACHE_DIR": "/cache/triton",
    }
