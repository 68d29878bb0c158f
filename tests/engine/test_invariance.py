"""Exported graphs: what of them is batch invariant is found, and made so; then company changes no bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.compile.export import export
from outrider.engine.compile.invariance import use_native, variant_operators
from outrider.engine.engine import Engine
from outrider.engine.load import self_check
from outrider.engine.load.probe import probe_layers
from tests.engine.histories import random_line
from tests.engine.readings import in_company, single_steps
from tests.engine.tiny_models import build

pytestmark = pytest.mark.usefixtures("native_operators")


class Calls(nn.Module):
    """A module that calls one function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def lowered(function: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32) -> torch.export.ExportedProgram:
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(Calls(function), (torch.randn(3, 64, dtype=dtype),), dynamic_shapes=({0: rows},))
    use_native(program.graph)
    program.graph_module.recompile()
    return program


@pytest.mark.parametrize(
    "function",
    [
        functional.silu,
        torch.sigmoid,
        torch.tanh,
        lambda x: functional.gelu(x, approximate="tanh"),
        lambda x: torch.cat([x.cos(), x.sin()], -1),
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda x: x - x.mean(-1, keepdim=True),
        lambda x: functional.layer_norm(x, (64,), torch.arange(64.0), torch.ones(64), 1e-5),
        lambda x: functional.layer_norm(x, (64,)),
        lambda x: (x[:, :, None] @ x[:, None, :3]).flatten(1),
        lambda x: 0.5 * x + x**3 - x / 3.0,
    ],
)
def test_what_depends_on_a_token_alone_is_known_and_computes_the_same(function: Callable[[Tensor], Tensor]) -> None:
    program = lowered(function)
    assert variant_operators(program.graph) == []
    x = torch.randn(5, 64)
    torch.testing.assert_close(program.module(check_guards=False)(x), function(x), rtol=1e-5, atol=1e-5)


def test_a_cube_in_16_bits_has_the_same_bits_compiled() -> None:
    """gelu_new of GPT-2 and Phi has one: seen were other bits, since the compiler rounds it once and torch twice."""
    program = lowered(lambda x: x + 0.044715 * x**3, torch.bfloat16)
    assert variant_operators(program.graph) == []
    run = program.module(check_guards=False)
    x = torch.randn(64, 64).bfloat16()
    assert torch.equal(run(x), x + 0.044715 * x**3)
    assert torch.equal(torch.compile(run, options={"emulate_precision_casts": True})(x), run(x))


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda x: x @ torch.ones(64, 8), "aten.matmul.default"),
        (lambda x: functional.linear(x, torch.ones(8, 64)), "aten.linear.default"),
        (lambda x: x.softmax(-1), "aten.softmax.int"),
        (lambda x: x.exp(), "aten.exp.default"),
        (lambda x: x.abs().sqrt(), "aten.sqrt.default"),
        (lambda x: functional.gelu(x), "aten.gelu.default"),
        (lambda x: x - x.mean(), "aten.mean.default"),
        (lambda x: x - x.mean(0, keepdim=True), "aten.mean.dim"),
        (lambda x: x.pow(0.5), "aten.pow.Tensor_Scalar"),
        (lambda x: torch.add(x, x, alpha=0.3), "aten.add.Tensor"),
        (lambda x: x.sum(-1), "aten.sum.dim_IntList"),
        (lambda x: x.cumsum(-1), "aten.cumsum.default"),
    ],
)
def test_what_may_depend_on_others_is_named(function: Callable[[Tensor], Tensor], operator: str) -> None:
    assert variant_operators(lowered(function).graph) == [operator]


def passages(model: PreTrainedModel) -> list[self_check.Passage]:
    return self_check.reference(model, probe_layers(model), 64)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma2"])
def test_company_changes_no_bit_of_a_family(family: str) -> None:
    reference = passages(build(family, layers=2))
    engine = Engine(build(family, layers=2), max_sessions=4, max_context=96)
    engine.export()
    self_check.check(engine, reference)
    assert engine.batch_invariant
    assert engine.attention == "native"
    line, others = random_line(20, seed=3), [random_line(length, seed=length) for length in (5, 33, 64)]
    assert torch.equal(in_company(engine, line, others), single_steps(engine, line, range(20)))


def test_experts_are_not_promised() -> None:
    assert "aten.topk.default" in export(build("gpt_oss", layers=1)).variant_operators


def test_a_model_that_cannot_be_exported_goes_on() -> None:
    class Reading(type(build("llama", layers=1))):
        """Looks at a number of the batch, as some models do."""

        def forward(self, *, input_ids: Tensor, **arguments: object) -> object:
            if input_ids[0, 0].item() < 0:
                raise ValueError
            return super().forward(input_ids=input_ids, **arguments)

    model: PreTrainedModel = build("llama", layers=1)
    reference = passages(model)
    engine = Engine(model, max_sessions=1, max_context=64)
    model.__class__ = Reading
    with pytest.raises(UnsupportedModelError, match="cannot be exported"):
        engine.export()
    self_check.check(engine, reference)
    assert not engine.batch_invariant
