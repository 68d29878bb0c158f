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

pytestmark = pytest.mark.timeout(1200)  # a library is built first, half a minute on two cores that nobody else uses

FILES = (
    "test_linear.py",
    "test_compact.py",
    "test_eight_bits.py",
    "test_native.py",
    "test_rows.py",
    "test_native_sampling.py",
)
"""What holds products, attention, functions and choices to their references."""


OLDER = older()[-2:]
"""Those without AVX-512, of which every library takes half a minute to build."""

needs_older = pytest.mark.skipif(bool(CPU_PROBLEM) or not OLDER, reason=CPU_PROBLEM or "nothing older runs here")


@needs_older
def test_the_oldest_passes_the_tests_of_this_one() -> None:
    files = [str(Path(__file__).parent / name) for name in FILES]
    options = ["-q", "-p", "no:cacheprovider", "-p", "tests.engine.older_processor", f"--level={OLDER[-1]}"]
    run([sys.executable, "-m", "pytest", *options, *files])


@needs_older
@pytest.mark.usefixtures("native_operators")
@pytest.mark.parametrize("level", OLDER)
def test_float32_and_weights_in_eight_bits_have_the_same_bits(level: str, tmp_path: Path) -> None:
    written = tmp_path / "results.safetensors"
    run([sys.executable, "-m", "tests.engine.older_processor", level, str(written)])
    there = load_file(written)
    differing = [name for name, here in results().items() if not torch.equal(here, there[name])]
    assert differing == []


def run(command: list[str]) -> None:
    """Runs it beside this test; what it says is in the error if it fails."""
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
