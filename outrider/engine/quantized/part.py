"""A rank's part of a weight in few bits, where a model is divided over several devices."""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

from torch import Tensor

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.quantized.scheme import PIECE
from outrider.engine.quantized.weight import QuantizedWeight


class Part(NamedTuple):
    """One of as many parts as there are ranks."""

    rank: int
    num_ranks: int

    def of(self, size: int, what: str) -> slice:
        """Its share of so many. Raises UnsupportedModelError if they do not divide."""
        if size % self.num_ranks:
            raise self.refusal(f"{size} {what} do not divide")
        share = size // self.num_ranks
        return slice(self.rank * share, (self.rank + 1) * share)

    def refusal(self, reason: str) -> UnsupportedModelError:
        """What is said where something cannot be divided."""
        return UnsupportedModelError(
            f"a quantized weight cannot be divided over {self.num_ranks} devices: {reason}; use fewer with "
            "--tensor-parallel, or de-quantise all with --weights full"
        )


def outputs_of(weight: QuantizedWeight, part: Part) -> QuantizedWeight:
    """The part's outputs. Raises UnsupportedModelError if they do not divide."""
    outputs, rows, scales = part.of(weight.num_outputs, "outputs"), weight.rows, weight.scales
    if (outputs.stop - outputs.start) % rows:
        rows, scales = 1, scales.repeat_interleave(rows, 0)
    zeros = None if weight.zeros is None else weight.zeros[outputs].clone()
    own_scales = scales[outputs.start // rows : outputs.stop // rows].clone()
    return QuantizedWeight(weight.codes[outputs].clone(), own_scales, rows, weight.columns, zeros, weight.order)


def inputs_of(weight: QuantizedWeight, part: Part) -> QuantizedWeight:
    """What the weight has of the part's inputs: products with all parts add up to that with the whole.

    Raises UnsupportedModelError if inputs, or those that share a scale, do not divide, or stand in an order of their
    own: then groups belong to several ranks.
    """
    inputs = part.of(weight.num_inputs, "inputs")
    if weight.order is not None:
        raise part.refusal("its inputs stand in an order of their own (desc_act)")
    share, group = inputs.stop - inputs.start, min(weight.columns, weight.num_inputs)
    per_byte, columns = weight.num_inputs // weight.codes.shape[1], gcd(group, share)
    if columns % PIECE and (per_byte > 1 or columns < share):
        raise part.refusal(f"{share} inputs are no whole groups of {PIECE}")

    def own(numbers: Tensor, inputs_each: int) -> Tensor:
        return numbers[:, inputs.start // inputs_each : inputs.stop // inputs_each].clone()

    def finer(of_groups: Tensor) -> Tensor:
        return own(of_groups.repeat_interleave(group // columns, 1), columns)

    zeros = None if weight.zeros is None else finer(weight.zeros)
    return QuantizedWeight(own(weight.codes, per_byte), finer(weight.scales), weight.rows, columns, zeros)
