"""Whether kernels in Triton do on a device what torch does: they are tried at start, as not every GPU has been met."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from outrider.core.protocol.refusal import first_line
from outrider.engine.batch import PackedBatch, SessionSpan
from outrider.engine.gpu.work_list import PAGE_CELLS

CAPABILITY_MIN = (8, 0)
"""The oldest architecture that Triton compiles for."""


def triton_problem(device: torch.device) -> str:
    """Why Triton cannot launch anything on `device`; empty if nothing speaks against it."""
    if device.type != "cuda":
        return "kernels in Triton run on GPUs; use --device cuda"
    if not torch.cuda.is_available() or torch.cuda.get_device_capability(device) < CAPABILITY_MIN:
        return "kernels in Triton need a CUDA device of architecture 8.0 or newer"
    try:
        import_module("triton")
    except ImportError:
        return "the package triton is not installed; install the one that belongs to this torch"
    return ""


def trial(off: Callable[[], float], tolerance: float) -> str:
    """Why kernels cannot be used, in words; empty if they can.

    `off` runs them and says by what share they miss what torch computes. Up to `tolerance` rounding explains it.
    """
    try:
        found = off()
    except Exception as error:  # compilers, drivers and kernels raise whatever they meet
        return f"the kernels do not run here ({type(error).__name__}: {first_line(error)})"
    if not found <= tolerance:  # nor is NaN
        return f"the kernels compute something else than torch does here, by {found:.1%}"
    return ""


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two tensors, as a share of the largest number that was expected."""
    return ((found.float() - expected.float()).abs().max() / expected.float().abs().max()).item()


def small_step(num_held: int, num_fed: int) -> PackedBatch:
    """A step over the end of a line and two nodes below it, of which every token's logits are wanted.

    The line lies in the cache's first two blocks, the second one first. It has `num_held` tokens there already.
    """
    end = num_held + num_fed
    line = range(num_held, end)
    num_tokens = num_fed + 2
    return PackedBatch(
        token_ids=[*range(num_tokens)],
        positions=[*line, end, end],
        write_cells=[(cell + PAGE_CELLS) % (2 * PAGE_CELLS) for cell in (*line, end, end + 1)],
        limits=[*(cell + 1 for cell in line), end, end],
        path_offsets=[0] * (num_fed + 1) + [1, 2],
        path_cells=[end, end + 1],
        sessions=[SessionSpan(0, num_tokens, 0, end + 2)],
        blocks=[1, 0],
        block_cells=PAGE_CELLS,
        rows=[*range(num_tokens)],
    )
