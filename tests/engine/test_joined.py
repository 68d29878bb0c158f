"""Linear layers that read the same input make one product, where their weights are of a kind."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from outrider.engine.compile.joined import joined
from outrider.engine.quantized.linear import QuantizedLinear
from outrider.engine.quantized.weight import QuantizedWeight
from tests.engine.quantized import fp8, int4

RANDOM = torch.Generator().manual_seed(3)
NUM_INPUTS = 64
"""Of all weights here."""


class Other(nn.Linear):
    """A layer of a class that is not known."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def test_plain_layers_are_one_product_and_others_are_called_as_they_are() -> None:
    x, plain, other = torch.randn(3, 8), nn.Linear(8, 4), Other(8, 4)
    both = joined(plain, other)(x)
    assert torch.equal(both, torch.cat([plain(x), other(x)], 1))
    one = joined(plain, nn.Linear(8, 2))(x)
    assert one.shape == (3, 6)
    torch.testing.assert_close(one[:, :4], functional.linear(x, plain.weight, plain.bias))


ORDER = torch.randperm(NUM_INPUTS, generator=RANDOM)

ONE = {
    "a scale for an output": [fp8(8, 64, 1, 64), fp8(6, 64, 1, 64)],
    "blocks, the last of which is cut": [fp8(48, 64, 24, 32), fp8(24, 64, 24, 32), fp8(30, 64, 24, 32)],
    "int4": [int4(8, 64, 32), int4(16, 64, 32)],
    "int4, the same order": [int4(8, 64, 32, ORDER), int4(16, 64, 32, ORDER.clone())],
}
SEVERAL = {
    "a block that goes beyond its layer": [fp8(30, 64, 24, 32), fp8(24, 64, 24, 32)],
    "blocks of other sizes": [fp8(24, 64, 24, 32), fp8(24, 64, 12, 32)],
    "groups of other sizes": [fp8(24, 64, 24, 32), fp8(24, 64, 24, 64)],
    "other bits": [int4(8, 64, 64), fp8(8, 64, 1, 64)],
    "an order of its own": [int4(8, 64, 32, ORDER), int4(8, 64, 32, ORDER.flip(0))],
    "an order of one alone": [int4(8, 64, 32), int4(8, 64, 32, ORDER)],
}


def layers_of(weights: Sequence[QuantizedWeight], *, biased: bool = False) -> list[QuantizedLinear]:
    return [
        QuantizedLinear(weight, torch.randn(weight.num_outputs, generator=RANDOM) if biased else None)
        for weight in weights
    ]


@pytest.mark.parametrize("name", ONE)
def test_weights_in_few_bits_of_a_kind_are_one_and_in_memory_once(name: str) -> None:
    x, layers = torch.randn(5, NUM_INPUTS, generator=RANDOM), layers_of(ONE[name], biased=name == "int4")
    expected = torch.cat([layer(x) for layer in layers], -1)
    one = joined(*layers)
    assert isinstance(one, QuantizedLinear)
    torch.testing.assert_close(one(x), expected)
    torch.testing.assert_close(torch.cat([layer(x) for layer in layers], -1), expected, atol=0.0, rtol=0.0)
    for buffer in ("codes", "scales", *(["zeros"] if one.zeros is not None else [])):
        storages = {getattr(layer, buffer).untyped_storage().data_ptr() for layer in (one, *layers)}
        assert len(storages) == 1, buffer
    again = joined(*layers)
    assert isinstance(again, QuantizedLinear)
    assert again.codes.data_ptr() == one.codes.data_ptr()


@pytest.mark.parametrize("name", SEVERAL)
def test_weights_in_few_bits_of_several_kinds_are_called_one_by_one(name: str) -> None:
    x, layers = torch.randn(5, NUM_INPUTS, generator=RANDOM), layers_of(SEVERAL[name])
    product = joined(*layers)
    assert not isinstance(product, QuantizedLinear)
    assert torch.equal(product(x), torch.cat([layer(x) for layer in layers], -1))


def test_a_bias_of_one_alone() -> None:
    x, layers = (
        torch.randn(5, NUM_INPUTS, generator=RANDOM),
        [*layers_of([int4(8, 64, 32)]), *layers_of([int4(8, 64, 32)], biased=True)],
    )
    assert torch.equal(joined(*layers)(x), torch.cat([layer(x) for layer in layers], -1))
