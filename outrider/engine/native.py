"""The operators of a CPU worker in machine code, made from the sources in `native/` and known to torch once loaded.

Whoever computes with one calls it by name: `attention/native.py`, `sample/native.py`, `compile/linear.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from array import array
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outrider.core.protocol.refusal import first_line
from outrider.engine import library
from outrider.engine.library import CannotCompileError

_loaded = False
_cores: tuple[int, Sequence[int]] | None = None


def load(cache: Path) -> None:
    """Makes the operators known to torch: those that came with the package, or built into the folder `cache`.

    Raises CannotCompileError if there are none and they cannot be built, or if they cannot be loaded.
    """
    global _loaded
    if _loaded:
        return
    path = library.find(cache) or library.build(cache)
    try:
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)  # packages look for the C functions among what is global
    except OSError as error:
        if path.parent == cache:
            with contextlib.suppress(OSError):
                path.unlink()  # a broken one would be found again at every start
        raise library.cannot_be_loaded(str(error), path.parent) from error
    torch.library.register_fake("outrider_native::ragged_attention", _fake_attention)
    torch.library.register_fake("outrider_native::linear", _fake_linear)
    torch.library.register_fake("outrider_native::gated_linear", _fake_gated_linear)
    torch.library.register_fake("outrider_native::elementwise", _fake_elementwise)
    torch.library.register_fake("outrider_native::row_mean", _fake_row_mean)
    _loaded = True
    if _cores is not None:
        use_cores(*_cores)


def use_cores(num_threads: int, borrowed: Sequence[int]) -> None:
    """Packages that are loaded from now on take up to so many threads, and to read prompts one more on each of the
    `borrowed` cores, which stays away while somebody else works there. How many a step takes they learn from its time.

    Without it all steps take as many as torch has been given.
    """
    global _cores
    _cores = num_threads, borrowed
    if _loaded:
        torch.ops.outrider_native.set_cores(num_threads, borrowed)


class Package:
    """A forward pass that was compiled ahead of time."""

    def __init__(self, path: Path) -> None:
        """Loads it. Raises CannotCompileError if that fails, as it does for a package that is broken."""
        try:
            number: int = torch.ops.outrider_native.load_package(str(path))
        except RuntimeError as error:
            raise CannotCompileError(f"the package {path} cannot be loaded ({first_line(error)}); delete it") from error
        self.number = number
        """What the operators know it by."""
        self.run: Callable[[list[Tensor]], list[Tensor]] = partial(
            torch.ops.outrider_native.run_package.default, number
        )
        """Runs it, with the interpreter lock released."""
        self.metadata: list[str] = torch.ops.outrider_native.package_metadata(number)
        """The keys of what was noted when it was compiled."""
        weakref.finalize(self.run, torch.ops.outrider_native.unload_package, number)


@cache
def levels() -> Callable[..., Any]:
    """Makes one `Levels` of `native/levels.cpp`. Its methods release the interpreter lock."""
    return torch.classes.outrider_native.Levels


def has_linear(dtype: torch.dtype) -> bool:
    """Whether there are products of few rows of such numbers. The operators are loaded."""
    return bool(torch.ops.outrider_native.has_linear(dtype))


def prefers_bytes(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies rows of such numbers faster with weights in eight bits than in their own type.
    The operators are loaded."""
    return bool(torch.ops.outrider_native.prefers_bytes(dtype))


def prefers_compact() -> bool:
    """Whether this processor reads bfloat16 in twelve bits faster than in sixteen. The operators are loaded."""
    return bool(torch.ops.outrider_native.prefers_compact())


def available(device: torch.device) -> bool:
    """Whether the operators are loaded and work on tensors of `device`."""
    return _loaded and device.type == "cpu"


def integers(numbers: list[int]) -> Tensor:
    """[N], int64, in a quarter of the time that `torch.tensor` takes."""
    return torch.frombuffer(array("q", numbers), dtype=torch.int64)


def _fake_linear(x: Tensor, panels: Tensor, bias: Tensor | None, num_outputs: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], num_outputs)


def _fake_gated_linear(
    x: Tensor,
    gate: Tensor,
    gate_bias: Tensor | None,
    up: Tensor,
    up_bias: Tensor | None,
    num_inner: int,
    down: Tensor,
    down_bias: Tensor | None,
    num_outputs: int,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], num_outputs)


def _fake_elementwise(x: Tensor, function: int) -> Tensor:
    return x.new_empty(x.shape)


def _fake_row_mean(x: Tensor, power: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], 1)


def _fake_attention(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    return query.new_empty(query.shape[1], query.shape[0], value.shape[-1])
