"""The native operators on processors with less than this one has: held to the same references, and the same bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.conftest import CPU_PROBLEM
from tests.engine.older_processor import older, results

pytestmark = pytest.mark.timeout(600)  # a library is built first, by all cores, for half a minute

FILES = ("test_linear.py", "test_eight_bits.py", "test_native.py", "test_rows.py", "test_native_sampling.py")
"""What holds products, attention, functions and choices to their references."""


@pytest.fixture(params=[*older()] or [None])
def level(request: pytest.FixtureRequest) -> str:
    if CPU_PROBLEM or request.param is None:
        pytest.skip(CPU_PROBLEM or "this processor has nothing that older ones lack")
    return request.param


def test_they_pass_the_tests_of_this_one(level: str) -> None:
    files = [str(Path(__file__).parent / name) for name in FILES]
    options = ["-q", "-p", "no:cacheprovider", "-p", "tests.engine.older_processor", "--level", level]
    run([sys.executable, "-m", "pytest", *options, *files])


@pytest.mark.usefixtures("native_operators")
def test_float32_and_weights_in_eight_bits_have_the_same_bits(level: str, tmp_path: Path) -> None:
    written = tmp_path / "results.safetensors"
    run([sys.executable, "-m", "tests.engine.older_processor", level, str(written)])
    there = load_file(written)
    differing = [name for name, here in results().items() if not torch.equal(here, there[name])]
    assert differing == []


def run(command: list[str]) -> None:
    """Runs it beside this test; what it says is in the error if it fails."""
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
