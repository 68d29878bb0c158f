"""Parts of weights in few bits: together they are the whole, number by number, or they are refused in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.load.division import part_of
from outrider.engine.quantized.part import Part, inputs_of, outputs_of
from outrider.engine.quantized.weight import QuantizedWeight
from tests.engine.quantized import fp8, int4
from tests.engine.tiny_models import build

RANDOM = torch.Generator().manual_seed(7)


WEIGHTS: Mapping[str, Callable[[], QuantizedWeight]] = {
    "fp8, a scale for an output": lambda: fp8(12, 36, 1, 36),
    "fp8 in blocks": lambda: fp8(96, 128, 24, 32),
    "fp8 in blocks that are cut": lambda: fp8(36, 192, 24, 128),
    "int4 in groups": lambda: int4(8, 128, 32),
    "int4 in groups that are cut": lambda: int4(8, 192, 64),
    "int4 in one group": lambda: int4(8, 128, 128),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_parts_make_up_the_whole(name: str) -> None:
    weight = WEIGHTS[name]()
    whole = weight.dequantized(torch.float32)
    for divide, dim in ((outputs_of, 0), (inputs_of, 1)):
        parts = [divide(weight, Part(rank, 2)) for rank in range(2)]
        assert torch.equal(torch.cat([part.dequantized(torch.float32) for part in parts], dim), whole)
        own = parts[1].codes
        assert own.untyped_storage().nbytes() == own.nbytes == weight.codes.nbytes // 2  # it holds no more than that


def test_outputs_are_divided_whatever_the_order_of_the_inputs() -> None:
    weight = int4(8, 64, 32, torch.randperm(64, generator=RANDOM))
    parts = [outputs_of(weight, Part(rank, 4)).dequantized(torch.float32) for rank in range(4)]
    assert torch.equal(torch.cat(parts), weight.dequantized(torch.float32))


ORDERED = int4(8, 64, 32, torch.randperm(64, generator=RANDOM))
REFUSED = {
    "outputs": (lambda: outputs_of(fp8(9, 32, 1, 32), Part(0, 2)), "9 outputs do not divide"),
    "inputs": (lambda: inputs_of(fp8(8, 33, 1, 33), Part(0, 2)), "33 inputs do not divide"),
    "pieces": (lambda: inputs_of(int4(8, 96, 32), Part(0, 2)), "48 inputs are no whole groups of 32"),
    "an order": (lambda: inputs_of(ORDERED, Part(0, 2)), r"inputs stand in an order of their own \(desc_act\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_divide_is_refused_in_words(name: str) -> None:
    divide, words = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=f"over 2 devices: .*{words}; use fewer .* --weights full"):
        divide()


def test_a_rule_that_is_not_known_is_refused_in_words() -> None:
    model, weight = build("llama", layers=1), fp8(32, 32, 1, 32)
    name = "model.layers.0.self_attn.o_proj"
    assert part_of(model, name, weight, None, Part(1, 2)).codes.shape == (32, 16)
    assert part_of(model, "model.other", weight, None, Part(1, 2)).codes.shape == (32, 32)
    model._tp_plan = {"model.layers.*.self_attn.o_proj": "packed_rowwise"}
    with pytest.raises(
        UnsupportedModelError, match=r"divides model\.layers\.0\.self_attn\.o_proj by the rule packed_row"
    ):
        part_of(model, name, weight, None, Part(1, 2))


def test_a_bias_is_divided_with_its_outputs_and_added_once_where_inputs_are() -> None:
    model, weight, bias = build("llama", layers=1), fp8(32, 32, 1, 32), torch.randn(32, generator=RANDOM)
    for name, expected in (("q_proj", [bias[:16], bias[16:]]), ("o_proj", [bias, None])):
        name = f"model.layers.0.self_attn.{name}"
        for rank, own in enumerate(expected):
            found = part_of(model, name, weight, bias, Part(rank, 2)).bias
            assert found is own or (found is not None and own is not None and torch.equal(found, own))
