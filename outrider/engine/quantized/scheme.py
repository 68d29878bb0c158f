"""How a checkpoint's linear layers are quantized, by its config.json, which is not trusted: what is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn

from outrider.core.protocol.errors import UnsupportedModelError

PIECE = 32
"""Inputs that share a scale are a multiple of so many: kernels read them in such pieces."""

_WHAT_TO_DO = (
    "take the folder of the same model in 16 bits, or in fp8 (compressed-tensors float-quantized, or fine-grained) or "
    "int4 (AWQ gemm, or GPTQ)"
)
_ALL_INPUTS = -1
"""The group size that says that all inputs of an output share a scale."""


class Scheme(NamedTuple):
    """What holds for all quantized linear layers of one checkpoint."""

    kind: Literal["fp8", "int4"]
    layout: Literal["compressed-tensors", "fine-grained", "awq", "gptq"]
    block: tuple[int, int] | None = None
    """fp8: outputs and inputs that share a scale; None where a tensor's scale has as many numbers as it needs: one, or
    one for each output."""
    group_size: int | None = None
    """int4: inputs of an output that share a scale; None for all of them."""
    zeros_less_one: bool = False
    """int4: whether what is stored of a zero point is one less."""


def scheme_of(entries: Mapping[str, Any]) -> Scheme:
    """What the `quantization_config` of a config.json says.

    Weights alone are read so: activations stay in the run's type, whatever else is said of them. Raises
    UnsupportedModelError with what to do for everything that is not known, or no sense.
    """
    try:
        match entries.get("quant_method"):
            case "fp8":
                return _fine_grained(entries)
            case "compressed-tensors":
                return _compressed_tensors(entries)
            case "awq":
                return _awq(entries)
            case "gptq":
                return _gptq(entries)
            case method:
                _refuse(f"weights quantized by {method!r} are not read")
    except (TypeError, AttributeError, KeyError) as error:
        _refuse(f"its quantization_config makes no sense ({type(error).__name__}: {error})")


def _fine_grained(entries: Mapping[str, Any]) -> Scheme:
    _require(entries, "fmt", (None, "e4m3"))
    _require(entries, "activation_scheme", (None, "dynamic", "static"))
    size = entries.get("weight_block_size")
    return Scheme("fp8", "fine-grained", block=None if size is None else _block(size))


def _compressed_tensors(entries: Mapping[str, Any]) -> Scheme:
    _require(entries, "format", ("float-quantized",))
    _require(entries.get("sparsity_config") or {}, "format", (None, "dense"))
    if entries.get("transform_config"):
        _refuse("compressed-tensors with transforms (transform_config) are not read")
    blocks: set[tuple[int, int] | None] = set()
    for group in entries["config_groups"].values():
        weights = group["weights"]
        _require(group, "format", (None, "float-quantized"))
        _require(weights, "num_bits", (8,))
        _require(weights, "type", ("float",))
        _require(weights, "symmetric", (None, True))
        _require(weights, "dynamic", (None, False))
        _require(weights, "strategy", ("tensor", "channel", "block"))
        blocks.add(_block(weights["block_structure"]) if weights["strategy"] == "block" else None)
    if len(blocks) != 1:
        _refuse("compressed-tensors whose groups have scales of several kinds, or which have none, are not read")
    return Scheme("fp8", "compressed-tensors", block=blocks.pop())


def _awq(entries: Mapping[str, Any]) -> Scheme:
    _require(entries, "bits", (4,))
    _require(entries, "zero_point", (True,))
    version = entries.get("version") or entries.get("format")
    if str(version).lower() != "gemm":
        _refuse(f"AWQ of the version {version!r} is not read, gemm alone is")
    return Scheme("int4", "awq", group_size=_group_size(entries))


def _gptq(entries: Mapping[str, Any]) -> Scheme:
    _require(entries, "bits", (4,))
    _require(entries, "pack_dtype", (None, "int32"))
    if entries.get("dynamic"):
        _refuse("GPTQ that differs from layer to layer (dynamic) is not read")
    said = entries.get("checkpoint_format") or entries.get("format") or "gptq"
    if said not in ("gptq", "gptq_v2"):
        _refuse(f"GPTQ of the format {said!r} is not read, gptq and gptq_v2 are")
    return Scheme("int4", "gptq", group_size=_group_size(entries), zeros_less_one=said == "gptq")


def _group_size(entries: Mapping[str, Any]) -> int | None:
    size = entries.get("group_size")
    if size == _ALL_INPUTS:
        return None
    if type(size) is not int or size < PIECE or size % PIECE:
        _refuse(f"group_size is {size!r}, where a multiple of {PIECE} is read, or {_ALL_INPUTS}")
    return size


def _block(size: Any) -> tuple[int, int]:
    rows, columns = size if isinstance(size, list) and len(size) == 2 else (0, 0)
    if type(rows) is not int or type(columns) is not int or rows < 1 or columns < PIECE or columns % PIECE:
        _refuse(f"blocks of {size!r} share a scale, where [outputs, a multiple of {PIECE} inputs] is read")
    return rows, columns


def _require(entries: Mapping[str, Any], name: str, known: Sequence[Any]) -> None:
    said = entries.get(name)
    if not any(said == each and type(said) is type(each) for each in known):
        wanted = " or ".join(repr(each) for each in known if each is not None)
        _refuse(f"{name} is {said!r} in its quantization_config ({entries.get('quant_method', '')}), not {wanted}")


def _refuse(reason: str) -> NoReturn:
    raise UnsupportedModelError(f"{reason}; {_WHAT_TO_DO}")
