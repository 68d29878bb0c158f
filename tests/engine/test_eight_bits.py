"""Weights in eight bits: their product, to the last bit and in whatever company, and a model that keeps them so."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from outrider.engine.compile.ahead import compile_ahead
from outrider.engine.compile.linear import PackedLinear, fuse_siblings
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.load import self_check
from outrider.engine.load.probe import probe_layers
from outrider.engine.quantized import eight_bits
from outrider.engine.quantized.linear import QuantizedLinear, keep_in_eight_bits, kept_as
from tests.engine.histories import random_line
from tests.engine.readings import in_company, single_steps
from tests.engine.test_linear import Perceptron, Projections, called, fused, layer, noise
from tests.engine.tiny_models import build

pytestmark = pytest.mark.usefixtures("native_operators")

NUMS_ROWS = (1, 5, 6, 7, 13, 33)
"""Around the six rows that a kernel takes at once, and more than weights are fetched for."""

SHAPES = [(64, 48), (384, 1000), (32, 1), (34, 17), (33, 70), (4100, 40)]
"""Inputs and outputs: whole words and panels, and others."""


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def kept(plain: nn.Linear | Conv1D) -> QuantizedLinear:
    """That layer with its weight in eight bits."""
    model = nn.Sequential(plain)
    keep_in_eight_bits(model)
    return cast("QuantizedLinear", model[0])


def of_whole_numbers(x: Tensor, layer: QuantizedLinear) -> Tensor:
    """The product as the operator's source tells it: whole numbers, and float32 wherever something is rounded."""
    weight = layer.weight_in_few_bits
    codes, scales = weight.codes.double(), weight.scales.T
    peaks = x.float().abs().amax(-1, keepdim=True)
    factors = torch.full_like(peaks, eight_bits.DIGITS_MAX).div(peaks)  # a number / peaks would round twice
    whole = (x.double() * factors.double()).round()
    high = ((whole + 128) / 256).floor()
    low = whole - 256 * high
    sums = 256.0 * (high @ codes.T).float() + (low @ codes.T).float()
    return (sums * (peaks / eight_bits.DIGITS_MAX) * scales).to(x.dtype)


@pytest.mark.parametrize(("num_inputs", "num_outputs"), SHAPES, ids=str)
def test_it_is_the_product_of_whole_numbers_to_the_last_bit(
    num_inputs: int, num_outputs: int, dtype: torch.dtype
) -> None:
    quantized = kept(layer(num_inputs, num_outputs, dtype))
    packed = PackedLinear(quantized)
    for num_rows in NUMS_ROWS:
        x = noise(num_rows, num_inputs, dtype=dtype, seed=num_rows)
        assert torch.equal(packed(x), of_whole_numbers(x, quantized))


@pytest.mark.parametrize(("num_inputs", "num_outputs"), SHAPES, ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_it_is_as_near_to_the_product_as_rounding_lets_it(num_inputs: int, num_outputs: int, bias: bool) -> None:
    """Nothing is further off than half a unit of each of its numbers makes."""
    plain = layer(num_inputs, num_outputs, torch.float32, bias=bias)
    quantized = kept(plain)
    packed = PackedLinear(quantized)
    x = noise(20, num_inputs, dtype=torch.float32).double()
    bias_of_all = 0.0 if plain.bias is None else plain.bias.double()
    exact = x @ plain.weight.double().T + bias_of_all
    weight = quantized.weight_in_few_bits
    unit = x.abs().amax(1, keepdim=True) / eight_bits.DIGITS_MAX
    of_weights = x.abs().sum(1, keepdim=True) * weight.scales.double().T / 2
    of_rows = unit / 2 * weight.dequantized(torch.float32).double().abs().sum(1)
    for found in (packed(x.float()), quantized(x.float())):
        assert bool(((found.double() - exact).abs() <= of_weights + of_rows + 1e-5 * num_inputs**0.5).all())
    assert ((packed(x.float()).double() - exact).norm() / exact.norm()).item() < 0.012  # a weight is off by 0.8 %


@pytest.mark.parametrize("num_inputs", [384, 33, 8224])
def test_a_row_has_the_same_bits_in_whatever_company(num_inputs: int, dtype: torch.dtype) -> None:
    packed = PackedLinear(kept(layer(num_inputs, 200, dtype, bias=True)))
    x = noise(100, num_inputs, dtype=dtype)
    alone = torch.cat([packed(row[None]) for row in x])
    for num_rows in NUMS_ROWS:
        assert torch.equal(packed(x[:num_rows]), alone[:num_rows])
        assert torch.equal(packed(x[-num_rows:]), alone[-num_rows:])
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    assert torch.equal(packed(x), alone)


def test_rows_of_nothing_and_of_no_numbers_stay_themselves(dtype: torch.dtype) -> None:
    packed = PackedLinear(kept(layer(64, 40, dtype)))
    x = noise(20, 64, dtype=dtype)
    clean = packed(x)
    x[2], x[3, 5], x[4, 6], x[5, 7] = 0.0, float("nan"), float("inf"), -float("inf")
    dirty = packed(x)
    assert not dirty[2].any()
    assert dirty[3:6].isnan().all()
    assert torch.equal(torch.cat([dirty[:2], dirty[6:]]), torch.cat([clean[:2], clean[6:]]))


def test_outputs_without_weights_are_nothing_and_the_largest_numbers_fit() -> None:
    plain = layer(1000, 32, torch.float32)
    with torch.no_grad():
        plain.weight[3] = 0.0
        plain.weight[4:] = torch.where(plain.weight[4:] > 0, 1.0, -1.0)
    x = torch.ones(2, 1000)
    x[1] = torch.where(plain.weight[5] > 0, 3.0, -3.0)
    found = PackedLinear(kept(plain))(x)
    assert not found[:, 3].any()
    torch.testing.assert_close(found[:, 4:], x @ plain.weight[4:].T, rtol=1e-6, atol=0.0)
    assert found[1, 5] == 3000.0


def test_a_gated_perceptron_becomes_one_operator(dtype: torch.dtype) -> None:
    for size, num_inner in ((64, 96), (34, 70), (32, 8224)):
        perceptron = Perceptron(size, num_inner, dtype, bias=True)
        keep_in_eight_bits(perceptron)
        x = noise(64, size, dtype=dtype)
        wanted = perceptron(x).double()
        one = fused(perceptron, size, dtype=dtype)
        assert called(one) == ["gated_linear"]
        whole = one(x)
        atol = max(1e-4, 3 * torch.finfo(dtype).eps) * wanted.abs().max().item()
        torch.testing.assert_close(whole.double(), wanted, rtol=0.0, atol=atol)
        for num_rows in (1, 6, 7, 33):
            assert torch.equal(one(x[-num_rows:]), whole[-num_rows:])


def test_layers_of_one_input_become_one_product_of_the_same_bits(dtype: torch.dtype) -> None:
    projections = Projections(98, [48, 16, 32], dtype, biases=[True] * 3)
    keep_in_eight_bits(projections)
    one = fused(projections, 98, fuse_siblings, dtype)
    assert called(one) == ["linear"]
    x = noise(9, 98, dtype=dtype)
    for part, alone in zip(one(x), projections(x), strict=True):
        assert torch.equal(part, alone)


def test_panels_of_another_matrix_are_refused(dtype: torch.dtype) -> None:
    packed = PackedLinear(kept(layer(64, 40, dtype)))
    with pytest.raises(RuntimeError, match="panels of another matrix"):
        packed(noise(2, 60, dtype=dtype))


def test_every_linear_layer_is_kept_so_and_what_the_head_shares_stays_whole() -> None:
    for family in ("llama", "gpt2"):
        model = build(family, layers=2)
        model.tie_weights()
        embeddings = model.get_input_embeddings().get_parameter("weight").clone()
        keep_in_eight_bits(model)
        assert kept_as(model) == "int8"
        assert not any(isinstance(module, (nn.Linear, Conv1D)) for module in model.modules())
        assert torch.equal(model.get_input_embeddings().get_parameter("weight"), embeddings)
        assert isinstance(model.get_output_embeddings(), QuantizedLinear)


def test_inputs_too_many_for_sums_of_bytes_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eight_bits, "INPUTS_MAX", 48)
    model = nn.Sequential(nn.Linear(48, 8), nn.Linear(49, 8))
    keep_in_eight_bits(model)
    assert [type(each) for each in model] == [QuantizedLinear, nn.Linear]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_computes_what_its_layers_say_in_whatever_company(family: str) -> None:
    model = build(family, layers=2)
    keep_in_eight_bits(model)
    reference = self_check.reference(model, probe_layers(model), 64)
    engine = Engine(model, max_sessions=4, max_context=64)
    engine.export()
    assert engine.batch_invariant
    self_check.check(engine, reference)
    line = random_line(40, seed=5)
    alone = single_steps(engine, line, range(len(line)))
    assert torch.equal(in_company(engine, line, [random_line(length, seed=length) for length in (3, 30)]), alone)


def test_a_package_has_the_bits_of_its_operators(tmp_path: Path) -> None:
    package = tmp_path / "llama.pt2"

    def model() -> nn.Module:
        made = build("llama", layers=1).to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
        keep_in_eight_bits(made)
        return made

    compile_ahead(model(), package)  # pyright: ignore[reportArgumentType]
    line, found = random_line(30, seed=3), list[Tensor]()
    for compiled in (False, True):
        engine = Engine(model(), max_sessions=1, max_context=64)  # pyright: ignore[reportArgumentType]
        if compiled:
            engine.adopt(package)
        else:
            engine.export()
        assert engine.batch_invariant
        job = Job(engine.acquire(), line, [LINE_END, 0, LINE_END], [3, 4, 5], range(LINE_END, 3))
        found.append(engine.step([job]).logits.clone())
    assert torch.equal(*found)


def test_the_definition_is_the_operator_but_for_float32(dtype: torch.dtype) -> None:
    """What a worker is checked against at start, and what runs where the operator cannot be built."""
    quantized = kept(layer(384, 200, dtype))
    x = noise(30, 384, dtype=dtype)
    exact = of_whole_numbers(x, quantized)
    torch.testing.assert_close(
        quantized(x), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-4 * exact.abs().max().item()
    )
    whole = functional.linear(x.float(), quantized.weight_in_few_bits.dequantized(torch.float32))
    torch.testing.assert_close(
        exact.float(), whole, rtol=2 * torch.finfo(dtype).eps, atol=1e-3 * whole.abs().max().item()
    )
