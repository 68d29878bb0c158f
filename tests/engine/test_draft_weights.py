"""In what a worker keeps the weights of its linear layers: a drafter on a CPU in int8, where that is faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from draft_service.config import DraftConfig
from outrider.core.protocol.messages import ModelInfo
from outrider.engine import native
from outrider.engine.library import CannotCompileError
from outrider.worker.config import WorkerConfig
from outrider.worker.startup import load
from tests.e2e.stack import save_tiny
from tests.engine.tiny_models import build
from verify_service.config import VerifyConfig

pytestmark = pytest.mark.usefixtures("native_operators")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(build("llama", layers=1), tmp_path_factory.mktemp("model"))


def loaded(folder: Path, kind: type[WorkerConfig] = DraftConfig, **settings: Any) -> ModelInfo:
    always = {"model": str(folder), "num_threads": 1, "compile": "off", "listen": "127.0.0.1:0"}
    return load(kind.model_validate({**always, **settings})).info


@pytest.mark.parametrize("faster", [True, False])
def test_a_drafter_takes_int8_where_that_is_faster(faster: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "prefers_bytes", lambda dtype: faster)
    whole = loaded(folder, weights="full")
    info = loaded(folder)
    assert (whole.weights, info.weights) == ("full", "int8" if faster else "full")
    assert info.num_parameters == whole.num_parameters
    assert info.batch_invariant
    assert loaded(folder, VerifyConfig).weights == "full"


def test_a_drafter_takes_int8_where_it_is_told_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "prefers_bytes", lambda dtype: False)
    assert loaded(folder, weights="int8").weights == "int8"
    by_torch = loaded(folder, weights="int8", attention_backend="torch")
    assert (by_torch.weights, by_torch.forward_pass) == ("int8", "eager")


def test_without_the_operators_it_stays_with_its_own_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "prefers_bytes", lambda dtype: True)
    assert loaded(folder, attention_backend="torch").weights == "full"

    def fails(cache: Path) -> None:
        raise CannotCompileError("there is no compiler")

    monkeypatch.setattr(native, "load", fails)
    assert loaded(folder).weights == "full"


@pytest.mark.parametrize(
    ("kind", "device", "refused"),
    [(DraftConfig, "cpu", False), (DraftConfig, "cuda", True), (VerifyConfig, "cpu", True)],
)
def test_int8_is_for_drafters_on_a_cpu(kind: type[WorkerConfig], device: str, refused: bool, folder: Path) -> None:
    config = kind.model_validate({"model": str(folder), "device": device, "weights": "int8", "listen": "127.0.0.1:0"})
    problems = list(config.problems())
    assert [(each.setting, "for a drafter on a CPU" in each.text) for each in problems] == [("weights", True)] * refused
