"""Linear layers on the native operator: the same products, and the same bits in whatever company."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from outrider.engine.compile.linear import PackedLinear, fuse_gates, fuse_siblings, pack, panels

pytestmark = pytest.mark.usefixtures("native_operators")

NUMS_ROWS = (1, 2, 7, 12, 13, 16, 17, 31, 33, 64, 65, 100)
"""Around every number of rows that a kernel takes at once."""


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def noise(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def layer(num_inputs: int, num_outputs: int, dtype: torch.dtype, *, bias: bool = False) -> nn.Linear:
    made = nn.Linear(num_inputs, num_outputs, bias=bias, dtype=dtype)
    with torch.no_grad():
        made.weight.copy_(noise(num_outputs, num_inputs, dtype=dtype, seed=1))
        if bias:
            made.bias.copy_(noise(num_outputs, dtype=dtype, seed=2))
    return made


@pytest.mark.parametrize(
    ("num_inputs", "num_outputs"),
    [(64, 48), (384, 1000), (32, 1), (34, 17), (1024, 16), (98, 70), (8224, 40)],
    ids=lambda size: str(size),
)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_it_is_the_product(num_inputs: int, num_outputs: int, bias: bool, dtype: torch.dtype) -> None:
    plain = layer(num_inputs, num_outputs, dtype, bias=bias)
    packed = PackedLinear(plain)
    for num_rows in NUMS_ROWS:
        x = noise(num_rows, num_inputs, dtype=dtype, seed=num_rows)
        exact = functional.linear(
            x.double(), plain.weight.double(), plain.bias.double() if plain.bias is not None else None
        )
        torch.testing.assert_close(
            packed(x).double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-3 + 1e-6 * num_inputs
        )


@pytest.mark.parametrize("num_inputs", [384, 34, 8224])
def test_a_row_has_the_same_bits_in_whatever_company(num_inputs: int, dtype: torch.dtype) -> None:
    packed = PackedLinear(layer(num_inputs, 200, dtype))
    x = noise(100, num_inputs, dtype=dtype)
    alone = torch.cat([packed(row[None]) for row in x])
    for num_rows in NUMS_ROWS:
        assert torch.equal(packed(x[:num_rows]), alone[:num_rows])
        assert torch.equal(packed(x[-num_rows:]), alone[-num_rows:])


@pytest.mark.usefixtures("two_threads")
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    packed = PackedLinear(layer(1024, 1000, dtype))
    x = noise(40, 1024, dtype=dtype)
    shared = packed(x)
    torch.set_num_threads(1)
    assert torch.equal(packed(x), shared)


def test_leading_dimensions_and_strides_are_the_callers_affair(dtype: torch.dtype) -> None:
    packed = PackedLinear(layer(64, 40, dtype))
    x = noise(64, 3, 5, dtype=dtype).movedim(0, -1)
    assert packed(x).shape == (3, 5, 40)
    assert torch.equal(packed(x)[1, 2], packed(x[1, 2].clone()[None])[0])


def test_others_may_use_the_tiles_in_between(dtype: torch.dtype) -> None:
    plain = layer(384, 128, dtype)
    packed = PackedLinear(plain)
    x = noise(40, 384, dtype=dtype)
    before = packed(x)
    plain(x)
    assert torch.equal(packed(x), before)


def test_infinities_and_nans_stay_in_their_row(dtype: torch.dtype) -> None:
    packed = PackedLinear(layer(64, 40, dtype))
    x = noise(20, 64, dtype=dtype)
    clean = packed(x)
    x[3, 5], x[4, 6] = float("nan"), float("inf")
    dirty = packed(x)
    assert dirty[3].isnan().all()
    assert not dirty[4].isfinite().any()
    assert torch.equal(torch.cat([dirty[:3], dirty[5:]]), torch.cat([clean[:3], clean[5:]]))


def test_panels_hold_sixteen_outputs_side_by_side() -> None:
    weight = torch.arange(18 * 4).view(18, 4).to(torch.float32)
    assert panels(weight).shape == (2, 4, 16)
    assert torch.equal(panels(weight)[0, 3], weight[:16, 3])
    assert panels(weight)[1, 0].tolist() == [64.0, 68.0] + [0.0] * 14
    halves = panels(weight.to(torch.bfloat16))
    assert halves.shape == (2, 2, 32)
    assert halves[0, 1].view(16, 2).tolist() == weight[:16, 2:].tolist()


class Perceptron(nn.Module):
    def __init__(self, size: int, num_inner: int, dtype: torch.dtype, *, bias: bool = False) -> None:
        super().__init__()
        self.gate = layer(size, num_inner, dtype, bias=bias)
        self.up = layer(size, num_inner, dtype, bias=bias)
        self.down = layer(num_inner, size, dtype, bias=bias)
        with torch.no_grad():
            self.up.weight.neg_()
            for each in (self.gate, self.up, self.down):
                each.weight.mul_(each.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


def fused(
    module: nn.Module, size: int, fuse: Callable[[fx.Graph], None] = fuse_gates, dtype: torch.dtype | None = None
) -> nn.Module:
    """The module as it is compiled: packed, exported and with its products fused. Its input is of `dtype`, or if None
    as its weights are."""
    pack(module)
    example = torch.zeros(3, size, dtype=dtype or next(module.buffers()).dtype)
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},))
    fuse(program.graph)
    program.graph_module.recompile()
    return program.module(check_guards=False)


@pytest.mark.parametrize(("size", "num_inner"), [(64, 96), (384, 1000), (34, 70), (32, 8224)], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_a_gated_perceptron_becomes_one_operator(size: int, num_inner: int, bias: bool, dtype: torch.dtype) -> None:
    perceptron = Perceptron(size, num_inner, dtype, bias=bias)
    exact = Perceptron(size, num_inner, dtype, bias=bias).double()
    one = fused(perceptron, size)
    assert called(one) == ["gated_linear"]
    x = noise(300, size, dtype=dtype)
    wanted = exact(x.double())
    whole = one(x)
    atol = max(1e-5, 2 * torch.finfo(dtype).eps) * wanted.abs().max().item()
    torch.testing.assert_close(whole.double(), wanted, rtol=0.0, atol=atol)
    for num_rows in NUMS_ROWS:
        assert torch.equal(one(x[:num_rows]), whole[:num_rows])
        assert torch.equal(one(x[-num_rows:]), whole[-num_rows:])


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("size", "num_inner"), [(384, 4000), (32, 8224)], ids=str)
def test_threads_change_no_bit_of_a_gated_perceptron(size: int, num_inner: int, dtype: torch.dtype) -> None:
    one = fused(Perceptron(size, num_inner, dtype), size)
    xs = [noise(num_rows, size, dtype=dtype) for num_rows in (1, 16, 40)]
    shared = [one(x) for x in xs]
    torch.set_num_threads(1)
    for x, of_two in zip(xs, shared, strict=True):
        assert torch.equal(one(x), of_two)


def test_what_only_looks_like_a_gate_stays_as_it_is(dtype: torch.dtype) -> None:
    class OtherInput(Perceptron):
        def forward(self, x: Tensor) -> Tensor:
            return self.down(functional.silu(self.gate(x)) * self.up(x + 1))

    class UsedTwice(Perceptron):
        def forward(self, x: Tensor) -> Tensor:
            inner = functional.silu(self.gate(x)) * self.up(x)
            return self.down(inner) + inner[..., :64]

    class OtherActivation(Perceptron):
        def forward(self, x: Tensor) -> Tensor:
            return self.down(functional.gelu(self.gate(x)) * self.up(x))

    for kind in (OtherInput, UsedTwice, OtherActivation):
        assert called(fused(kind(64, 96, dtype), 64)) == ["linear"] * 3


class Projections(nn.Module):
    """Layers of one input, of which the numbers of outputs are given."""

    def __init__(self, size: int, nums_outputs: list[int], dtype: torch.dtype, *, biases: list[bool]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            layer(size, num, dtype, bias=bias) for num, bias in zip(nums_outputs, biases, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return [each(x) for each in self.layers]


@pytest.mark.parametrize("size", [64, 384, 34, 8224])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_layers_of_one_input_become_one_product_of_the_same_bits(size: int, bias: bool, dtype: torch.dtype) -> None:
    projections = Projections(size, [48, 16, 32, 16], dtype, biases=[bias] * 4)
    one = fused(projections, size, fuse_siblings)
    assert called(one) == ["linear"]
    x = noise(100, size, dtype=dtype)
    for num_rows in NUMS_ROWS:
        for part, alone in zip(one(x[-num_rows:]), projections(x[-num_rows:]), strict=True):
            assert torch.equal(part, alone)


def test_layers_that_do_not_fit_together_stay_apart(dtype: torch.dtype) -> None:
    """Panels end with a layer, a bias is everybody's or nobody's, and inputs that look alike may differ."""

    class OtherInput(Projections):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.layers[0](x), self.layers[1](x + 1)]

    for apart in (
        Projections(64, [48, 17], dtype, biases=[False, False]),
        Projections(64, [48, 32], dtype, biases=[False, True]),
        OtherInput(64, [48, 32], dtype, biases=[False, False]),
    ):
        assert called(fused(apart, 64, fuse_siblings)) == ["linear"] * 2


def called(module: nn.Module) -> list[str]:
    """The native operators in a graph, in their order."""
    nodes = cast("fx.GraphModule", module).graph.nodes
    return [str(node.target).split(".")[1] for node in nodes if str(node.target).startswith("outrider_native")]


def test_what_the_operator_cannot_compute_stays_as_it_is() -> None:
    model = nn.Sequential(
        layer(64, 32, torch.float32), nn.Sequential(layer(64, 32, torch.float16)), layer(33, 8, torch.bfloat16)
    )
    pack(model)
    assert [type(module) for module in model.modules()] == [
        nn.Sequential,
        PackedLinear,
        nn.Sequential,
        nn.Linear,
        nn.Linear,
    ]


def test_panels_of_another_matrix_are_refused(dtype: torch.dtype) -> None:
    packed = PackedLinear(layer(64, 40, dtype))
    with pytest.raises(RuntimeError, match="panels of another matrix"):
        packed(noise(2, 32, dtype=dtype))
