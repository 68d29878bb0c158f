"""What cannot be divided is refused in words, before any rank is started."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.load.division import check_division
from outrider.settings import BadSettingsError
from outrider.worker.forward_pass import compiles
from outrider.worker.joining import device_of
from tests.engine import tiny_models
from verify_service.config import VerifyConfig


def saved(family: str, tmp_path: Path) -> Path:
    """The configuration of a tiny model, which is all that is looked at."""
    tiny_models.build(family, layers=1).config.save_pretrained(tmp_path)
    return tmp_path


def test_heads_that_do_not_divide(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    check_division(folder, 2)
    with pytest.raises(UnsupportedModelError, match=r"4 attention heads do not divide into 3 parts; .* one of 2, 4"):
        check_division(folder, 3)
    with pytest.raises(UnsupportedModelError, match=r"2 key-value heads do not divide into 4 parts; .* one of 2$"):
        check_division(folder, 4)


def test_an_architecture_without_a_plan(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no plan for dividing models of type 'gpt2'"):
        check_division(saved("gpt2", tmp_path), 2)


def settings(**values: object) -> VerifyConfig:
    return VerifyConfig.checked(model="org/name", **values)


def test_one_device_for_several_ranks() -> None:
    with pytest.raises(BadSettingsError, match=r"--device: cuda:1 is one device; with --tensor-parallel say cuda"):
        settings(tensor_parallel=2, device="cuda:1")


def test_more_ranks_than_devices() -> None:
    num_devices = torch.cuda.device_count()
    with pytest.raises(UnsupportedModelError, match=f"torch sees {num_devices}; use fewer"):
        device_of(settings(tensor_parallel=num_devices + 2, device="cuda"))


def test_another_number_than_torchrun_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": 3, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 3}.items():
        monkeypatch.setenv(name, str(value))
    settings(tensor_parallel=3)
    settings(tensor_parallel=1)
    with pytest.raises(BadSettingsError, match=r"torchrun has started 3 processes \(WORLD_SIZE\)"):
        settings(tensor_parallel=2)
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(BadSettingsError, match="must be numbers, or unset"):
        settings(tensor_parallel=3)


def test_a_compiled_pass_over_several_devices() -> None:
    with pytest.raises(UnsupportedModelError, match=r"--compile on: over several devices .* operator by operator"):
        compiles(settings(tensor_parallel=2, compile="on"), torch.device("cpu"))
