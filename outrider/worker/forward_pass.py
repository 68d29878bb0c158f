"""The forward pass that a worker runs: compiled, of native operators, or of torch's own; checked before it is used."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import structlog
import torch

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine import library, native
from outrider.engine.attention.native import NativeAttention
from outrider.engine.attention.registry import AUTO
from outrider.engine.compile.just_in_time import compiler_problem
from outrider.engine.engine import Engine
from outrider.engine.library import CannotCompileError
from outrider.engine.load import self_check
from outrider.worker.compilation import cache_problem
from outrider.worker.config import WorkerConfig


def take_up(
    engine: Engine, config: WorkerConfig, package: Path | None, reference: Sequence[self_check.Passage]
) -> Path | None:
    """Has the engine run the best forward pass that there is by now, which computes what `reference` says.

    `package` is where one belongs that was compiled ahead of time; None: none is wanted. Returns it if it is still to
    be made. Raises UnsupportedModelError.
    """
    if package is not None and _adopted(engine, package, reference):
        return None
    if package is not None and _hindered(config, cache_problem(config.compile_cache)):
        package = None
    if engine.device.type == "cpu" and config.num_ranks == 1 and not _why_not_native(config):
        use_native(engine, config.compile_cache)
    self_check.check(engine, reference)
    return package


def captures(config: WorkerConfig, device: torch.device) -> bool:
    """Whether small steps may be captured as graphs, compiled or not."""
    return device.type != "cpu" and config.compile != "off" and config.num_ranks == 1


def why_not_compiled(engine: Engine, choice: str) -> list[str]:
    """Compiles and captures small steps, as far as that works. Returns why not, if not. Raises UnsupportedModelError if
    it fails and `choice` is on."""
    if engine.captures:
        return warm_up(engine, choice)
    problem = f"steps are compiled and captured with attention tree alone, and it is {engine.attention}"
    if choice == "on":
        raise UnsupportedModelError(f"--compile on: {problem}; or use --compile off")
    return [problem]


def warm_up(engine: Engine, choice: str) -> list[str]:
    """Compiles and captures the engine's small steps; logs its progress. Where that fails and `choice` is not on, they
    are captured uncompiled, and where that fails too, they run eagerly. Returns why something failed.

    Raises UnsupportedModelError if it fails and `choice` is on.
    """
    failures: list[str] = []
    while True:
        try:
            _warm_up(engine)
        except UnsupportedModelError as error:
            if choice == "on":
                raise
            structlog.get_logger().warning("not captured" if failures else "not compiled", reason=str(error))
            failures.append(str(error))
            if engine.captures and len(failures) == 1:
                engine.run_uncompiled()
                continue
            engine.run_eagerly()
        return failures


def _warm_up(engine: Engine) -> None:
    started = time.monotonic()
    for size in engine.warm_up():
        seconds = round(time.monotonic() - started, 1)
        structlog.get_logger().info("captured", tokens=size, seconds=seconds)


def use_native(engine: Engine, cache: Path) -> None:
    """Runs the engine on the native operators from now on; where they cannot, says why, and it stays on torch's."""
    try:
        _load_native(cache)
        engine.export()
    except UnsupportedModelError as error:
        structlog.get_logger().warning("logits depend on the batch", reason=str(error))


def _load_native(cache: Path) -> None:
    if library.find(cache) is None:
        structlog.get_logger().info("building the native operators, once for this machine")
    native.load(cache)


def drafts_in_eight_bits(config: WorkerConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the linear layers of a drafter keep their weights in eight bits: if it is told to, and on a CPU that
    multiplies them faster than numbers of `dtype`, unless it is told otherwise."""
    if config.weights == "int8":
        return True
    if not config.drafts or config.weights != "auto" or device.type != "cpu" or _why_not_native(config):
        return False
    try:
        _load_native(config.compile_cache)
    except CannotCompileError:
        return False  # whoever takes up a forward pass says why
    return native.prefers_bytes(dtype)


def compiles(config: WorkerConfig, device: torch.device) -> bool:
    """Whether forward passes are compiled. Raises UnsupportedModelError if they cannot be and have to."""
    if config.compile == "off":
        return False
    problem = compiler_problem(device)
    if config.num_ranks > 1:
        problem = "over several devices a forward pass runs operator by operator"
    elif device.type == "cpu" and (reason := _why_not_native(config)):
        problem = f"a compiled forward pass on a CPU attends by native, {reason}"
    return not _hindered(config, problem)


def _why_not_native(config: WorkerConfig) -> str:
    """Why layers do not attend by `native` on a CPU; empty if they may."""
    if config.attention_backend not in (AUTO, NativeAttention.name):
        return f"not by {config.attention_backend}"
    return "" if config.kv_cache_dtype == "auto" else f"which keeps no keys and values in {config.kv_cache_dtype}"


def _hindered(config: WorkerConfig, problem: str) -> bool:
    """Whether there is a problem with compiling; logs it. Raises UnsupportedModelError if there must be none."""
    if problem and config.compile == "on":
        raise UnsupportedModelError(f"--compile on: {problem}; or use --compile off")
    if problem:
        structlog.get_logger().warning("not compiled", reason=problem)
    return bool(problem)


def _adopted(engine: Engine, package: Path, reference: Sequence[self_check.Passage]) -> bool:
    """Whether the engine runs `package` from now on. One that is there and does not work is logged."""
    if not package.exists():
        return False
    try:
        native.load(package.parent)
        engine.adopt(package)
        self_check.check(engine, reference)
    except UnsupportedModelError as error:
        structlog.get_logger().warning("the compiled package is of no use", package=package.name, reason=str(error))
        engine.run_eagerly()
        return False
    return True
