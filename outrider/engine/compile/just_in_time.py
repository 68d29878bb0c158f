"""Compiled forward passes: less time between the kernels of a step, which for a small model is half of it."""

from __future__ import annotations

import importlib.util
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from transformers import PreTrainedModel

COMPILED_TOKENS_MAX = 16
"""Largest batch that runs compiled. Each power of two up to it is one graph; larger batches are prompts, in which the
kernels themselves take the time."""

COMPILED_SIZES = tuple(1 << power for power in range(COMPILED_TOKENS_MAX.bit_length()))
"""Sizes of batches, in tokens, that have a graph of their own."""


GRAPHS_MAX = 64
"""Most graphs of one architecture in one process: that many engines times sizes. The compiler's own limit is 8."""


def bucket(count: int) -> int:
    """The static size that holds `count` tokens: the next power of two, so that few shapes ever occur."""
    return 1 << (count - 1).bit_length() if count else 0


def compiler_problem(device: torch.device) -> str:
    """Why nothing can be compiled for `device` here; empty if it can."""
    if device.type == "cuda":
        return "" if importlib.util.find_spec("triton") else "the package triton is not installed"
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler; install g++"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "the headers of Python are missing; install python3-dev"
    return ""


def compile_forward(model: PreTrainedModel) -> Callable[..., Any]:
    """`model` as graphs, each compiled at the first batch of its size.

    On a CPU the weights are frozen into the graphs, in the layout that the kernels want: they are in memory twice.
    """
    if model.device.type == "cpu":
        torch._inductor.config.freezing = True  # type: ignore[attr-defined]
    torch._dynamo.config.recompile_limit = GRAPHS_MAX  # type: ignore[attr-defined]
    return torch.compile(model, fullgraph=True, dynamic=False)
