"""Some architectures in awkward shapes are computed as transformers computes them; `make sweep` has all, compiled too.

`tests/engine/test_package.py` has one compiled in both types of numbers.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.architectures import save
from tests.engine.sweep import Sweep

EAGER = (
    "phi3, window",
    "qwen2, a window in some layers",
    "olmo3",
    "gpt_neox, a part rotated",
    "opt",
    "llama, yarn",
    "llama, its own rotary scale",
    "llama, 257 tokens",
    "qwen3, heads of 10",
    "qwen3, 25 heads in 5",
)
NATIVE = ("gemma3", "phi, a part rotated")
"""Exporting one takes a second or two."""


@pytest.mark.parametrize("name", EAGER)
def test_operator_by_operator_in_float32(name: str, tmp_path: Path) -> None:
    assert Sweep(save(name, tmp_path), "float32").eager().right


@pytest.mark.usefixtures("native_operators", "one_thread")
@pytest.mark.parametrize("name", NATIVE)
def test_by_native_operators_in_bfloat16(name: str, tmp_path: Path) -> None:
    assert Sweep(save(name, tmp_path), "bfloat16").native().right


def test_experts_that_a_rounding_changes_are_no_fault(tmp_path: Path) -> None:
    """The self-check finds the engine off where transformers has sent a token to another expert: in a few rows."""
    assert Sweep(save("phimoe", tmp_path), "bfloat16").eager().right
