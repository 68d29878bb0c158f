"""What a CPU worker does in machine code: the ragged attention and the choice of tokens, from the sources in `native/`.

They are built here, once for a machine, and called by name. Graphs that are compiled ahead of time call the attention
without Python; it plugs into transformers' `AttentionInterface` under the name NATIVE_ATTENTION.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import platform
import subprocess
import tempfile
import weakref
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch._inductor.cpp_builder import get_cpp_compiler
from torch.utils.cpp_extension import include_paths, library_paths

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.attention.ragged import register
from outrider.engine.batch import PackedBatch

NATIVE_ATTENTION = "outrider-native"
"""Name under which the attention is registered with transformers."""

SOURCES = sorted((Path(__file__).parent / "native").iterdir())
"""The operators' sources."""

_FLAGS = ["-std=c++20", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"]
_loaded = False


def load(cache: Path) -> None:
    """Makes the operators known to torch, built into the folder `cache` unless it is there already.

    Raises UnsupportedModelError if they cannot be built.
    """
    global _loaded
    if _loaded:
        return
    recipe = f"{_FLAGS} {torch.__version__} {processor()}"
    fingerprint = hashlib.sha256(b"".join(source.read_bytes() for source in SOURCES) + recipe.encode()).hexdigest()[:16]
    library = cache / f"native-{fingerprint}.so"
    if not library.exists():
        _build(library)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)  # packages look for the C functions among what is global
    torch.library.register_fake("outrider_native::ragged_attention", _fake_attention)
    torch.library.register_fake("outrider_native::linear", _fake_linear)
    torch.library.register_fake("outrider_native::gated_linear", _fake_gated_linear)
    _loaded = True


def processor() -> str:
    """What machine code may be used: two processors with the same answer run each other's."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = [line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")] if cpuinfo.exists() else []
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {flags[:1]}"


def set_caches(
    engine: int, keys: Sequence[Tensor], values: Sequence[Tensor], windows: Sequence[int | None], block_cells: int
) -> None:
    """Tells the operator the caches of each layer of the engine with number `engine`. Shapes as in `RaggedBatch`;
    `block_cells` is a power of two, 16 at least."""
    torch.ops.outrider_native.set_caches(
        engine, list(keys), list(values), [window or 0 for window in windows], block_cells
    )


def forget_caches(engine: int) -> None:
    """Lets go of an engine's caches."""
    torch.ops.outrider_native.forget_caches(engine)


def package_runner(package: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    """Loads a forward pass that was compiled ahead of time; the result runs it with the interpreter lock released."""
    number: int = torch.ops.outrider_native.load_package(str(package))
    runner = partial(torch.ops.outrider_native.run_package.default, number)
    weakref.finalize(runner, torch.ops.outrider_native.unload_package, number)
    return runner


def has_linear(dtype: torch.dtype) -> bool:
    """Whether this processor has products of few rows of such numbers."""
    return bool(torch.ops.outrider_native.has_linear(dtype))


def available(device: torch.device) -> bool:
    """Whether the operators are loaded and work on tensors of `device`."""
    return _loaded and device.type == "cpu"


def best_of(
    logits: Tensor,
    shaping: Tensor,
    seeds: Tensor,
    slots: Sequence[int],
    positions: Sequence[int],
    width: int,
) -> tuple[list[list[int]], list[list[float]]]:
    """The `width` best tokens of each row of `logits` [R, V] by perturbed score, and those scores.

    Fewer where the filters leave fewer. `slots` and `positions` are those of the rows; for each slot there is a column
    of `shaping` [5, num_slots]: temperature, top_k, top_p, log(min_p), scale of the noise; and one of `seeds`
    [num_slots].
    """
    found = torch.ops.outrider_native.best_of(logits, shaping, seeds, slots, positions, width)
    token_ids, scores = (table.tolist() for table in found)
    for row_token_ids, row in zip(token_ids, scores, strict=True):
        if row[-1] == -math.inf:
            num = row.index(-math.inf)
            del row_token_ids[num:], row[num:]
    return token_ids, scores


def integers(numbers: list[int]) -> Tensor:
    """[N], int64, in a quarter of the time that `torch.tensor` takes."""
    return torch.frombuffer(array("q", numbers), dtype=torch.int64)


def described(engine: int, batch: PackedBatch) -> Tensor:
    """The batch as the operator reads it: one list of integers, int64. Its reader is `Batch` in the source."""
    numbers = [engine, len(batch.sessions), *batch.write_cells, *batch.limits, *batch.path_offsets]
    for session in batch.sessions:
        numbers += session[:3]
    numbers += batch.path_cells
    numbers += batch.blocks
    return integers(numbers)


def _build(library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    includes = [f"-I{path}" for path in include_paths()]
    libraries = [flag for path in library_paths() for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    sources = [str(source) for source in SOURCES if source.suffix == ".cpp"]
    handle, unfinished = tempfile.mkstemp(dir=library.parent, suffix=".unfinished")
    os.close(handle)
    command = [get_cpp_compiler(), *_FLAGS, *includes, *sources, "-o", unfinished, *libraries]
    result = subprocess.run([*command, "-lc10", "-ltorch_cpu"], capture_output=True, text=True, check=False)
    if result.returncode:
        Path(unfinished).unlink()
        reason = next(iter(result.stderr.strip().splitlines()), "no message")
        raise UnsupportedModelError(
            f"the native operators cannot be built ({reason}); use --compile off, or install a compiler for C++20"
        )
    Path(unfinished).replace(library)


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


def _fake_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch: Tensor,
    layer: int,
    scale: float,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    return query.new_empty(query.shape[1], query.shape[0], value.shape[-1])


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch: Tensor,
    layer: int,
    scale: float,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    return torch.ops.outrider_native.ragged_attention(query, key, value, batch, layer, scale, softcap, sinks)


register(NATIVE_ATTENTION, _attend)
