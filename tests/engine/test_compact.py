"""Weights in twelve bits: to the last bit what they are in sixteen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from outrider.engine import native
from outrider.engine.compile.linear import PackedLinear, fuse_gates, fuse_siblings, panels
from tests.engine.test_linear import NUMS_ROWS, Perceptron, Projections, called, fused, layer, noise

pytestmark = pytest.mark.usefixtures("native_operators")

SIZES = [(64, 48), (384, 1000), (32, 1), (34, 17), (98, 70), (4104, 16), (8224, 40)]
"""Inputs and outputs: groups of lines that are not full, odd numbers of panels, and sums over more than one part."""


def compact(weight: Tensor) -> Tensor:
    return torch.ops.outrider_native.compact(panels(weight))


def product(x: Tensor, packed: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.outrider_native.linear(x, packed, None, len(weight))


def strewn(weight: Tensor, numbers: Tensor) -> Tensor:
    """`weight` with the numbers at the beginning, at the end, and here and there."""
    places = torch.linspace(0, weight.numel() - 1, len(numbers)).long()
    return weight.flatten().index_copy(0, places, numbers.to(weight.dtype)).view_as(weight)


ODD = torch.tensor([0.0, -0.0, 1e-40, -1e-38, 3e-20, -7e-10, 1e20, -3e38])
"""Zeros, a number below the smallest normal one, and exponents that no weight beside them has."""


@pytest.mark.parametrize(("num_inputs", "num_outputs"), SIZES, ids=str)
@pytest.mark.parametrize("numbers", [None, ODD], ids=["alike", "odd"])
def test_no_bit_of_a_product_differs(num_inputs: int, num_outputs: int, numbers: Tensor | None) -> None:
    weight = noise(num_outputs, num_inputs, dtype=torch.bfloat16) * 0.02
    if numbers is not None:
        weight = strewn(weight, numbers)
    packed = compact(weight)
    assert packed.dtype == torch.uint8
    for num_rows in (*NUMS_ROWS, 257):
        x = noise(num_rows, num_inputs, dtype=torch.bfloat16, seed=num_rows)
        assert torch.equal(bits(product(x, packed, weight)), bits(product(x, panels(weight), weight)))


def test_every_weight_comes_back() -> None:
    """Of one input that is 1 the outputs are its weights: every finite number that there is, two exponents a panel."""
    numbers = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    numbers = numbers[numbers.isfinite()].view(-1, 128)  # one sign and exponent a row
    weight = numbers.repeat_interleave(8, 0).view(-1, 128)[:, :128]
    ones = torch.eye(128, dtype=torch.bfloat16)
    packed = compact(weight)
    assert packed.dtype == torch.uint8
    for rows in (ones[:1], ones[:12], ones):
        found = product(rows, packed, weight)
        normal = weight.T[: len(rows)].float().abs() >= torch.finfo(torch.bfloat16).smallest_normal
        assert torch.equal(found[normal], weight.T[: len(rows)][normal])  # an instruction takes smaller ones for zero
        assert torch.equal(bits(found), bits(product(rows, panels(weight), weight)))


def test_a_matrix_of_too_many_exponents_stays_whole() -> None:
    """One weight more than the list of a panel holds."""
    weight = torch.ones(16, 384, dtype=torch.bfloat16)
    weight[:, :48] = 2.0 ** torch.arange(16).repeat(3).to(torch.bfloat16)
    room = 32
    weight.view(-1)[16 * 300 : 16 * 300 + room] = 2.0**-20
    assert compact(weight).dtype == torch.uint8
    weight.view(-1)[-1] = 2.0**-21
    assert torch.equal(compact(weight), panels(weight))


@pytest.mark.usefixtures("compact_everywhere")
@pytest.mark.parametrize("is_spread", ["gate", "up", "down"])
def test_a_perceptron_of_two_kinds_of_panels_stays_apart(is_spread: str) -> None:
    perceptron = Perceptron(64, 96, torch.bfloat16)
    exact = Perceptron(64, 96, torch.bfloat16).double()
    spread(perceptron.get_submodule(is_spread))
    spread(exact.get_submodule(is_spread))
    apart = fused(perceptron, 64, fuse_gates)
    assert called(apart) == ["linear"] * 3
    x = noise(20, 64, dtype=torch.bfloat16)
    wanted = exact(x.double())
    torch.testing.assert_close(apart(x).double(), wanted, rtol=0.0, atol=0.02 * wanted.abs().max().item())


@pytest.mark.usefixtures("compact_everywhere")
def test_siblings_of_two_kinds_stay_apart() -> None:
    projections = Projections(64, [48, 16, 32], torch.bfloat16, biases=[False] * 3)
    spread(projections.layers[1])
    plain = [each.weight.detach().clone() for each in projections.layers if isinstance(each, nn.Linear)]
    apart = fused(projections, 64, fuse_siblings)
    assert called(apart) == ["linear"] * 2
    x = noise(20, 64, dtype=torch.bfloat16)
    for found, weight in zip(apart(x), plain, strict=True):
        wanted = functional.linear(x.double(), weight.double())
        torch.testing.assert_close(found.double(), wanted, rtol=0.01, atol=0.01 * wanted.abs().max().item())


@pytest.mark.usefixtures("compact_everywhere")
def test_a_layer_of_bfloat16_alone_is_kept_so() -> None:
    assert PackedLinear(layer(64, 40, torch.bfloat16)).panels.dtype == torch.uint8
    assert PackedLinear(layer(64, 40, torch.float32)).panels.dtype == torch.float32


def test_panels_of_another_kind_are_refused() -> None:
    weight = noise(40, 64, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="panels of another matrix"):
        product(noise(2, 32, dtype=torch.bfloat16), compact(weight), weight)
    with pytest.raises(RuntimeError, match="panels of another matrix"):
        product(noise(2, 64, dtype=torch.float32), compact(weight), weight)
    with pytest.raises(RuntimeError, match="panels of another kind"):
        torch.ops.outrider_native.compact(panels(weight.float()))


@pytest.fixture
def compact_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a processor is not faster so."""
    monkeypatch.setattr(native, "prefers_compact", lambda: True)


def spread(module: nn.Module) -> None:
    """Weights of so many exponents that they stay whole."""
    assert isinstance(module, nn.Linear)
    with torch.no_grad():
        exponents = torch.arange(module.weight.numel()) % 24
        module.weight.mul_((2.0 ** -exponents.double()).view_as(module.weight).to(module.weight.dtype))


def bits(numbers: Tensor) -> Tensor:
    return numbers.view(torch.int16)
