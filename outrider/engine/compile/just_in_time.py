"""Forward passes compiled when first met: less time between the kernels of a small step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._inductor import config as inductor
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from outrider.engine.batch import COMPILED_TOKENS_MAX, PackedBatch, bucket
from outrider.engine.compile.decoder import Decoder
from outrider.engine.gpu import launcher
from outrider.engine.gpu.trial import triton_problem

GRAPHS_MAX = 64
"""Most graphs of one architecture in one process: that many engines times sizes. The compiler's own limit is 8."""


def compiler_problem(device: torch.device) -> str:
    """Why nothing can be compiled for `device` here; empty if it can."""
    if device.type == "cuda":
        return triton_problem(device) or launcher.compiler_problem()
    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):
        return f"there is no C++ compiler of the name {inductor.cpp.cxx[-1]!r}; install g++, or name one with CXX"
    return launcher.headers_problem()


def compile_decoder(decoder: Decoder) -> Decoder:
    """`decoder`, whose model runs as graphs from now on, each compiled at the first batch of its size."""
    torch._dynamo.config.recompile_limit = GRAPHS_MAX  # type: ignore[attr-defined]
    return decoder.calling(torch.compile(decoder.model, fullgraph=True, dynamic=False))


class CompiledForward:
    """Small batches, padded to a power of two of tokens."""

    path = "compiled"

    def __init__(self, decoder: Decoder) -> None:
        """`decoder` is what `compile_decoder` made."""
        self._decoder = decoder

    def run(self, batch: PackedBatch) -> Tensor | None:
        """See `Forward`. Logits are computed for every token: then the size alone tells the shape."""
        size = bucket(max(batch.num_tokens_min, len(batch.token_ids)))
        if size > COMPILED_TOKENS_MAX:
            return None
        return self._decoder.run(batch, size, size)
