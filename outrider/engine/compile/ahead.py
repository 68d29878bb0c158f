"""A forward pass compiled ahead of time into one package on disk, which runs without Python and without the GIL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from outrider.engine import native
from outrider.engine.attention.native import NATIVE_ATTENTION, NativeAttention
from outrider.engine.batch import PackedBatch, rounded
from outrider.engine.compile.linear import fuse_gates, fuse_siblings, pack

TOKENS_MAX = 1 << 17
"""Largest batch that a package accepts, in tokens: more than the line tokens of one step and the trees of as many
sessions as a worker may have."""

_TOKENS_MIN = 2
"""Smallest batch: the exporter takes a size of 1 for a constant. One token of padding costs a hundredth of a step."""

_EXAMPLE_TOKENS = 16
_NUMBERS_MIN = 8
"""Fewest integers that describe a batch of two tokens."""

_DIRECT = ("linear", "gated_linear", "ragged_attention")
"""Operators that exist as C functions too, each of which makes one tensor."""

_C_TYPES = {
    "Tensor": "AtenTensorHandle",
    "Optional[Tensor]": "const AtenTensorHandle*",
    "int": "int64_t",
    "float": "double",
}


class AheadForward:
    """A package in use. It is a `Forward`, which takes every batch."""

    def __init__(self, package: Path, attention: NativeAttention, scratch_cell: int) -> None:
        """Loads `package`, which `compile_ahead` wrote."""
        self._run = native.package_runner(package)
        self._attention = attention
        self._scratch_cell = scratch_cell

    def run(self, batch: PackedBatch) -> Tensor:
        """See `Forward`."""
        num_rows = len(batch.rows)
        batch.pad(rounded(max(batch.num_tokens_min, len(batch.token_ids), _TOKENS_MIN)), self._scratch_cell)
        rows = batch.rows + [0] * (rounded(max(num_rows, _TOKENS_MIN)) - num_rows)
        (logits,) = self._run(
            [
                native.integers(batch.token_ids),
                native.integers(batch.positions),
                native.integers(rows),
                self._attention.described(batch),
            ]
        )
        return logits if len(rows) == num_rows else logits[:num_rows]


class _Logits(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor, positions: Tensor, rows: Tensor, batch: Tensor) -> Tensor:
        output = self.model(
            input_ids=token_ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=rows,
            ragged_batch=batch,
        )
        return output.logits[0]


def compile_ahead(model: PreTrainedModel, package: Path) -> None:
    """Writes the package of `model`, one for all sizes of batches; takes from ten seconds to minutes.

    The weights are frozen into it in the layout that the kernels want, and the number of threads that torch has now.
    The native operator must be loaded. Raises CannotCompileError if the model cannot be compiled.
    """
    model.set_attn_implementation(NATIVE_ATTENTION)
    pack(model)
    num_tokens = torch.export.Dim("num_tokens", min=_TOKENS_MIN, max=TOKENS_MAX)
    num_rows = torch.export.Dim("num_rows", min=_TOKENS_MIN, max=TOKENS_MAX)
    num_numbers = torch.export.Dim("num_numbers", min=_NUMBERS_MIN)
    lists = [torch.arange(_EXAMPLE_TOKENS) for _ in range(3)]  # three: of one tensor the exporter would make one input
    example: tuple[Any, ...] = (*lists, torch.zeros(5 * _EXAMPLE_TOKENS, dtype=torch.int64))
    try:
        with torch.no_grad():
            program = torch.export.export(
                _Logits(model).eval(),
                example,
                dynamic_shapes=({0: num_tokens}, {0: num_tokens}, {0: num_rows}, {0: num_numbers}),
            )
            fuse_gates(program.graph)
            fuse_siblings(program.graph)
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(package),
                inductor_configs={"freezing": True, "aot_inductor.custom_ops_to_c_shims": _direct_calls()},
            )
    except Exception as error:  # exporter and compiler raise whatever they meet
        reason = str(error).strip().partition("\n")[0][:200]
        raise native.CannotCompileError(
            f"this model cannot be compiled ({type(error).__name__}: {reason}); use --compile off"
        ) from error


def _direct_calls() -> dict[Any, list[str]]:
    """What a package calls without torch's dispatcher, and the C declaration of each, as its schema has it."""
    calls: dict[Any, list[str]] = {}
    for name in _DIRECT:
        operator = getattr(torch.ops.outrider_native, name).default
        types = [_C_TYPES[str(argument.type)] for argument in operator._schema.arguments]
        calls[operator] = [f"AOTITorchError aoti_torch_cpu_{name}({', '.join([*types, 'AtenTensorHandle*'])})"]
    return calls
