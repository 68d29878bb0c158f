"""Functions and means in machine code: right, and the same bits wherever a number or a row stands."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from outrider.engine.compile.invariance import FUNCTIONS

pytestmark = pytest.mark.usefixtures("native_operators")

REFERENCES: list[Callable[[Tensor], Tensor]] = [
    functional.silu,
    torch.sigmoid,
    partial(functional.gelu, approximate="tanh"),
    torch.tanh,
    torch.cos,
    torch.sin,
]
"""In the order of FUNCTIONS."""

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def elementwise(x: Tensor, function: int) -> Tensor:
    return torch.ops.outrider_native.elementwise(x, function)


def row_mean(x: Tensor, power: int) -> Tensor:
    return torch.ops.outrider_native.row_mean(x, power)


def noise(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(1))).to(dtype)


@pytest.mark.parametrize("function", range(len(FUNCTIONS)), ids=lambda index: FUNCTIONS[index].overloadpacket.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_functions_are_those_of_torch(function: int, dtype: torch.dtype) -> None:
    for scale in (1e-3, 0.2, 5.0, 40.0):
        x = noise(3, 1001, scale=scale, dtype=dtype)
        expected = REFERENCES[function](x.double())
        found = elementwise(x, function)
        assert (found.shape, found.dtype) == (x.shape, dtype)
        rounding = torch.finfo(dtype).eps if dtype != torch.float32 else 3e-7
        torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("function", [4, 5], ids=["cos", "sin"])
def test_angles_of_far_positions_are_rounded_once(function: int) -> None:
    angles = (torch.arange(0, 1 << 20, 37).float()[:, None] * torch.tensor([1.0, 0.749894, 1e-4])).reshape(-1)
    assert torch.equal(elementwise(angles, function), REFERENCES[function](angles.double()).float())


@pytest.mark.parametrize("function", range(len(FUNCTIONS)), ids=lambda index: FUNCTIONS[index].overloadpacket.__name__)
def test_a_number_gives_the_same_bits_wherever_it_stands(function: int) -> None:
    """Torch's own do not: the last numbers of a tensor, or of a thread's share, are computed by other code."""
    x = noise(20_011, scale=3.0)
    found = elementwise(x, function)
    for first in range(1, 18):
        assert torch.equal(elementwise(x[first:], function), found[first:])
        assert torch.equal(elementwise(x[:first].clone(), function), found[:first])
    torch.set_num_threads(1)
    assert torch.equal(elementwise(x, function), found)


def test_what_is_no_number_stays_so() -> None:
    odd = torch.tensor([float("nan"), float("inf"), float("-inf")])
    for function in range(len(FUNCTIONS)):
        assert elementwise(odd, function)[0].isnan()
    assert elementwise(odd, 3)[1:].tolist() == [1.0, -1.0]
    assert elementwise(odd, 1)[1:].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("size", [1, 7, 16, 384, 1001])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_means_are_right_and_a_rows_own(power: int, size: int, dtype: torch.dtype) -> None:
    x = noise(70, 3, size, dtype=dtype)
    found = row_mean(x, power)
    expected = x.double().pow(power).mean(-1, keepdim=True)
    rounding = torch.finfo(dtype).eps if dtype != torch.float32 else 1e-6
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=rounding)
    for num_rows in (1, 2, 33):
        assert torch.equal(row_mean(x[-num_rows:].clone(), power), found[-num_rows:])
    turned = x.transpose(0, 1)
    assert torch.equal(row_mean(turned, power), found.transpose(0, 1))
