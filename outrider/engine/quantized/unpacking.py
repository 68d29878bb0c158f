"""From a checkpoint's tensors, in whichever layout, to a weight in few bits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.quantized.layout import NUMBERS_PER_WORD, Parts
from outrider.engine.quantized.weight import QuantizedWeight, packed

_IN_ORDER = tuple(range(NUMBERS_PER_WORD))
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""AWQ's gemm layout: where in a word each of eight neighbouring outputs stands."""

_FP8_NAN = 0x7F
"""Its bits, but for the sign."""


def weight_of(parts: Parts, read: Callable[[str], Tensor]) -> QuantizedWeight:
    """The weight that `parts` make up; `read` has a tensor of the checkpoint on the device where it belongs.

    Raises UnsupportedModelError if it holds what is no number, or groups of several sizes.
    """
    found = _fp8(parts, read) if parts.scheme.kind == "fp8" else _int4(parts, read)
    if not bool(found.scales.isfinite().all()):
        raise _damaged(parts.scales, "has scales that are no numbers")
    return found


def _fp8(parts: Parts, read: Callable[[str], Tensor]) -> QuantizedWeight:
    codes, scales = read(parts.codes), read(parts.scales).float()
    if bool(((codes.view(torch.uint8) & _FP8_NAN) == _FP8_NAN).any()):
        raise _damaged(parts.codes, "has elements that are no numbers")
    if (block := parts.scheme.block) is not None:
        return QuantizedWeight(codes, scales, *block)
    return QuantizedWeight(codes, scales.reshape(-1, 1).expand(parts.num_outputs, 1).contiguous(), 1, parts.num_inputs)


def _int4(parts: Parts, read: Callable[[str], Tensor]) -> QuantizedWeight:
    assert parts.zeros is not None
    scheme = parts.scheme
    columns = scheme.group_size or parts.num_inputs
    words, zero_words = read(parts.codes), read(parts.zeros)
    if scheme.layout == "awq":
        numbers, zeros = (_nibbles(each, 1, _AWQ_ORDER) for each in (words, zero_words))  # [K, N], [G, N]
    else:
        numbers, zeros = _nibbles(words, 0, _IN_ORDER), _nibbles(zero_words, 1, _IN_ORDER)
    if scheme.zeros_less_one:
        zeros = (zeros + 1) & 15
    order = None
    if parts.group_index is not None:
        index = read(parts.group_index).long()
        groups = torch.arange(parts.num_inputs, device=index.device) // columns
        if not torch.equal(index, groups):
            order = torch.argsort(index, stable=True)
            if not torch.equal(index[order], groups):
                raise _damaged(parts.group_index, f"does not name groups of {columns} inputs each")
            numbers = numbers[order]
    return QuantizedWeight(
        packed(numbers.T), read(parts.scales).T.contiguous(), 1, columns, zeros.T.contiguous(), order
    )


def _nibbles(words: Tensor, dim: int, order: tuple[int, ...]) -> Tensor:
    """The numbers in `words`, which stand one after another along `dim`, uint8; `order` has the place of each in its
    word."""
    numbers = [((words >> (4 * place)) & 15).to(torch.uint8) for place in order]
    return torch.stack(numbers, dim + 1).flatten(dim, dim + 1)


def _damaged(name: str, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"the tensor {name} {reason}; download the model again")
