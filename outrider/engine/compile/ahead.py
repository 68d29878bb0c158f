"""A forward pass compiled ahead of time into one package on disk, which runs without Python and without the GIL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from outrider.core.protocol.refusal import first_line
from outrider.engine.compile.export import export
from outrider.engine.compile.linear import fuse_siblings
from outrider.engine.library import CannotCompileError

INVARIANT = "batch_invariant"
"""Key of a package's metadata. It is there if a token's logits have the same bits whatever shares its step."""

_DIRECT = ("linear", "gated_linear", "elementwise", "row_mean", "ragged_attention")
"""Operators that exist as C functions too, each of which makes one tensor."""

_C_TYPES = {
    "Tensor": "AtenTensorHandle",
    "Optional[Tensor]": "const AtenTensorHandle*",
    "int": "int64_t",
    "float": "double",
}


def compile_ahead(model: PreTrainedModel, package: Path) -> None:
    """Writes the package of `model`, one for all sizes of batches; takes from ten seconds to minutes.

    The weights are frozen into it in the layout that the kernels want. The native operators, which are loaded, share
    their work among threads; what lies between them is too little to share. Raises CannotCompileError if the model
    cannot be compiled, and UnsupportedModelError if it cannot be exported.
    """
    try:
        exported = export(model)
        fuse_siblings(exported.program.graph)
        configs = {
            "freezing": True,
            "cpp.threads": 1,
            "emulate_precision_casts": True,  # numbers are rounded where the graph says so
            "aot_inductor.custom_ops_to_c_shims": _direct_calls(),
            "aot_inductor.metadata": {} if exported.variant_operators else {INVARIANT: "1"},
        }
        with torch.no_grad():
            torch._inductor.aoti_compile_and_package(
                exported.program, package_path=str(package), inductor_configs=configs
            )
    except Exception as error:  # the compiler raises whatever it meets
        raise CannotCompileError(
            f"this model cannot be compiled ({type(error).__name__}: {first_line(error)}); use --compile off"
        ) from error


def _direct_calls() -> dict[Any, list[str]]:
    """What a package calls without torch's dispatcher, and the C declaration of each, as its schema has it."""
    calls: dict[Any, list[str]] = {}
    for name in _DIRECT:
        operator = getattr(torch.ops.outrider_native, name).default
        types = [_C_TYPES[str(argument.type)] for argument in operator._schema.arguments]
        calls[operator] = [f"AOTITorchError aoti_torch_cpu_{name}({', '.join([*types, 'AtenTensorHandle*'])})"]
    return calls
