"""Which tensors of a checkpoint make up each quantized weight, by their headers alone; what does not fit is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn, Protocol

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.quantized.scheme import PIECE, Scheme

NUMBERS_PER_WORD = 8
"""int4: numbers in a word of 32 bits."""

_FP8 = "F8_E4M3"
_SCALES = {"F32", "F16", "BF16"}
_FP8_SCALES = _SCALES | {"F8_E8M0"}
_OF_ACTIVATIONS = (".activation_scale", ".input_scale", ".output_scale", ".q_scale", ".k_scale", ".v_scale")
"""What scales of activations, and of keys and values, are called. They are not read: those are not quantized so."""


class Header(Protocol):
    """What a checkpoint says of a tensor."""

    @property
    def dtype(self) -> str:
        """As safetensors calls it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]: ...


class Parts(NamedTuple):
    """The names of the tensors that make up one weight."""

    scheme: Scheme
    num_outputs: int
    num_inputs: int
    codes: str
    scales: str
    zeros: str | None = None
    group_index: str | None = None
    """GPTQ: to which group each input belongs, [num_inputs]; None if they stand in order."""

    @property
    def names(self) -> Sequence[str]:
        """All of them."""
        return [name for name in self[3:] if isinstance(name, str)]


class Layout(NamedTuple):
    """A quantized checkpoint."""

    weights: Mapping[str, Parts]
    """By the name that the whole weight would have."""
    plain: Sequence[str]
    """Names of the tensors that are as in any other checkpoint."""


def layout_of(headers: Mapping[str, Header], scheme: Scheme) -> Layout:
    """Raises UnsupportedModelError for a weight that is not whole, or of other types or shapes than `scheme` says."""
    weights: dict[str, Parts] = {}
    for name, header in headers.items():
        base, _, last = name.rpartition(".")
        if scheme.kind == "fp8" and header.dtype.startswith("F8") and header.dtype != "F8_E8M0":
            weights[name] = _fp8(headers, name, scheme)
        elif scheme.kind == "int4" and last == "qweight":
            weights[f"{base}.weight"] = _int4(headers, base, scheme)
    if not weights:
        _refuse(f"no tensor is in {scheme.kind}, by which {scheme.layout} is stored")
    if both := sorted(set(weights) & set(headers) - {parts.codes for parts in weights.values()}):
        _refuse(f"{both[0]} is there both quantized and whole")
    used = {name for parts in weights.values() for name in parts.names}
    return Layout(weights, [name for name in headers if name not in used and not name.endswith(_OF_ACTIVATIONS)])


def _fp8(headers: Mapping[str, Header], name: str, scheme: Scheme) -> Parts:
    scales = f"{name}_scale_inv" if scheme.layout == "fine-grained" else f"{name}_scale"
    num_outputs, num_inputs = _expect(headers, name, {_FP8}, None)
    if scheme.block is None:
        of_outputs = {(num_outputs,), (num_outputs, 1)}
        _expect(headers, scales, _FP8_SCALES, {(), (1,), (1, 1)} | of_outputs)
    else:
        rows, columns = scheme.block
        _expect(headers, scales, _FP8_SCALES, {(-(-num_outputs // rows), -(-num_inputs // columns))})
    return Parts(scheme, num_outputs, num_inputs, name, scales)


def _int4(headers: Mapping[str, Header], base: str, scheme: Scheme) -> Parts:
    codes = f"{base}.qweight"
    height, width = _expect(headers, codes, {"I32"}, None)
    is_awq = scheme.layout == "awq"
    num_inputs, num_outputs = (height, width * NUMBERS_PER_WORD) if is_awq else (height * NUMBERS_PER_WORD, width)
    group_size = scheme.group_size or num_inputs
    if num_inputs % group_size or group_size % PIECE or num_outputs % NUMBERS_PER_WORD:
        _refuse(f"{codes} has {num_inputs} inputs and {num_outputs} outputs, which are no whole groups of {group_size}")
    num_groups = num_inputs // group_size
    scales, zeros, index = f"{base}.scales", f"{base}.qzeros", f"{base}.g_idx"
    _expect(headers, scales, _SCALES, {(num_groups, num_outputs)})
    _expect(headers, zeros, {"I32"}, {(num_groups, num_outputs // NUMBERS_PER_WORD)})
    if is_awq or index not in headers:
        return Parts(scheme, num_outputs, num_inputs, codes, scales, zeros)
    _expect(headers, index, {"I32"}, {(num_inputs,)})
    return Parts(scheme, num_outputs, num_inputs, codes, scales, zeros, index)


def _expect(
    headers: Mapping[str, Header], name: str, dtypes: set[str], shapes: set[tuple[int, ...]] | None
) -> tuple[int, ...]:
    """The shape of a tensor; any matrix where `shapes` is None."""
    header = headers.get(name)
    if header is None:
        _refuse(f"it lacks {name}")
    if header.dtype not in dtypes:
        _refuse(f"{name} is {header.dtype}, not {' or '.join(sorted(dtypes))}")
    if header.shape not in shapes if shapes is not None else len(header.shape) != 2 or 0 in header.shape:
        wanted = " or ".join(str(list(shape)) for shape in sorted(shapes)) if shapes is not None else "a matrix"
        _refuse(f"{name} is {list(header.shape)}, not {wanted}")
    return header.shape


def _refuse(reason: str) -> NoReturn:
    raise UnsupportedModelError(
        f"the weights are not quantized as config.json says: {reason}; download them again, or take the config.json "
        "that belongs to them"
    )
