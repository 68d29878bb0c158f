"""Kernels are tried before they are used, and what speaks against them is said in words."""

from __future__ import annotations

import math
import shutil
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from outrider.engine.compile.just_in_time import compiler_problem
from outrider.engine.gpu.trial import difference, small_step, trial, triton_problem
from outrider.engine.gpu.work_list import work_list

CUDA = torch.device("cuda")


BUILD = SimpleNamespace(cc=None)
"""What Triton says of compilers: CC is not set."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that has all that Triton needs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(knobs=SimpleNamespace(build=BUILD)))
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "clang" else None)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "Python.h").touch()


@pytest.mark.usefixtures("gpu")
def test_what_compilers_need_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels need no more than a GPU."""
    assert compiler_problem(CUDA) == triton_problem(CUDA) == ""
    for owner, name, stand_in, reason in (
        (sysconfig, "get_path", lambda name: "/nowhere", "headers of Python are missing; install python3-dev"),
        (BUILD, "cc", "tcc", "there is none; install gcc, or name one with CC"),
        (shutil, "which", lambda name: name if name == "tcc" else None, "the headers of Python"),
        (BUILD, "cc", None, "there is none; install gcc"),
    ):
        monkeypatch.setattr(owner, name, stand_in)
        assert reason in compiler_problem(CUDA)
        assert triton_problem(CUDA) == ""


@pytest.mark.usefixtures("gpu")
def test_what_kernels_need_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert triton_problem(torch.device("cpu")) == "kernels in Triton run on GPUs; use --device cuda"
    for owner, name, stand_in, reason in (
        (torch.cuda, "get_device_capability", lambda device: (7, 5), "of architecture 8.0 or newer"),
        (torch.cuda, "is_available", lambda: False, "need a CUDA device"),
    ):
        monkeypatch.setattr(owner, name, stand_in)
        assert reason in triton_problem(CUDA)
        assert reason in compiler_problem(CUDA)


@pytest.mark.usefixtures("gpu")
def test_a_torch_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "the package triton is not installed" in triton_problem(CUDA)


def test_a_trial_goes_by_what_rounding_explains() -> None:
    assert trial(lambda: 0.01, 0.01) == ""
    assert trial(lambda: 0.011, 0.01) == "the kernels compute something else than torch does here, by 1.1%"
    assert trial(lambda: math.nan, 0.01).endswith("by nan%")

    def failing() -> float:
        raise ValueError("no such instruction\nat all")

    assert trial(failing, 1.0) == "the kernels do not run here (ValueError: no such instruction)"


def test_differences_are_shares_of_the_largest_number() -> None:
    expected = torch.tensor([1.0, -4.0])
    assert difference(torch.tensor([2.0, -4.0]), expected) == 0.25
    assert math.isnan(difference(torch.tensor([math.nan, -4.0]), expected))


@pytest.mark.parametrize(("num_held", "num_fed"), [(0, 3), (66, 1), (60, 9)])
def test_the_step_that_is_tried_is_one_that_an_engine_might_take(num_held: int, num_fed: int) -> None:
    batch = small_step(num_held, num_fed)
    end = num_held + num_fed
    assert batch.positions == [*range(num_held, end), end, end]
    places = [batch.blocks[cell // 64] * 64 + cell % 64 for cell in range(num_held, end + 2)]
    assert batch.write_cells == places
    paths = [batch.path_offsets[token + 1] - batch.path_offsets[token] for token in range(num_fed + 2)]
    assert paths == [0] * num_fed + [1, 1]
    assert [limit + path - 1 for limit, path in zip(batch.limits, paths, strict=True)] == batch.positions
    assert work_list(batch, (None,), 4).num_parts == num_fed + 2
