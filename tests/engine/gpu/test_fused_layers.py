"""Models of known classes on fused layers: few launches for each layer, and what transformers computes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from outrider.engine.attention.tree import TreeAttention
from outrider.engine.compile.joined import joined
from outrider.engine.engine import Engine
from outrider.engine.gpu import fused_layers, layer_kernels
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.quantized import linear
from tests.engine.gpu.launches import logged
from tests.engine.histories import Rig, a_tree_equals_its_branches_alone, random_line
from tests.engine.quantized import stored
from tests.engine.tape import Listening
from tests.engine.test_quantized import kept
from tests.engine.tiny_models import FAMILIES, VOCAB_SIZE, build

pytestmark = pytest.mark.usefixtures("interpreter", "willing")

FUSED = ("llama", "qwen3", "mistral")

LAUNCHES_PER_LAYER_MAX = 12
"""What issue and decision 0038 promise for layers of Llama and Qwen3."""

NO_LAUNCHES = ("empty", "new_empty", "empty_like", "empty_strided")
"""Operations that only take memory; views are told by themselves."""


OWN = {"add_and_normalize": 2, "rotate": 1, "attend": 1, "combine": 1, "gate": 1}
"""Of a layer, beside its products."""


def unreal(family: str, layers: int, dtype: torch.dtype = torch.float32) -> Engine:
    """An engine whose tensors have no content."""
    model: Any = build(family, layers=layers)
    return engine_of(model.to("meta", dtype))


def engine_of(model: PreTrainedModel) -> Engine:
    return Engine(model, max_sessions=2, max_context=64, attention=TreeAttention.name)


def listened(engine: Engine) -> Counter[str]:
    """What a step queues on its device: Triton's kernels, and operations of torch that compute."""
    slot, line = engine.acquire(), random_line(6, seed=1)
    with logged() as launches, Listening() as listening:
        engine.step([Job(slot, line, [LINE_END, LINE_END], [1, 2], wanted=range(LINE_END, 2))])
    operations = [func for func, *_ in listening.calls if isinstance(func, torch._ops.OpOverload)]
    names = [each.overloadpacket.__name__ for each in operations if not each.is_view]
    return Counter(name for name in names if name not in NO_LAUNCHES) + launches.num


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FUSED)
def test_launches_of_a_layer(family: str, dtype: torch.dtype) -> None:
    """The difference that one more layer makes."""
    found = [listened(unreal(family, layers, dtype)) for layers in (2, 3)]
    layer = found[1] - found[0]
    assert layer.total() <= LAUNCHES_PER_LAYER_MAX, layer
    assert {name: layer[name] for name in OWN} == OWN
    assert layer.total() == sum(OWN.values()) + 4  # products


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("layout", ["fp8 per channel", "fp8 per tensor", "awq"])
def test_launches_of_a_layer_in_few_bits(
    layout: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than those of a whole one."""
    monkeypatch.setattr(linear, "problem", lambda device: "")
    found: list[Counter[str]] = []
    for layers in (1, 2):
        stored(tmp_path, layout, family, layers=layers)
        model: Any = kept(tmp_path, torch.bfloat16)
        with logged():  # its layers are looked at, too
            engine = engine_of(model.to("meta"))
        found.append(listened(engine))
    layer = found[1] - found[0]
    assert layer == Counter(OWN | {"multiply": 4})
    assert layer.total() <= LAUNCHES_PER_LAYER_MAX


@pytest.mark.parametrize("layout", ["awq", "gptq, inputs in another order"])
def test_a_fused_model_in_few_bits_is_its_twin(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By as many launches, whatever the order of its inputs."""
    monkeypatch.setattr(linear, "problem", lambda device: "")
    twin, line = stored(tmp_path, layout), random_line(9, seed=1)
    engine = engine_of(kept(tmp_path))
    assert engine.not_fused == ""
    found = engine.step([Job(engine.acquire(), line)]).logits[0]
    with torch.inference_mode():
        expected = twin(input_ids=torch.tensor([line]), use_cache=False).logits[0, -1]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    step = listened(engine)
    assert step["multiply"] == 4
    assert step["index_select"] == 1  # of the rows whose logits are wanted


def test_a_bound_on_launches_can_fail() -> None:
    """Layers that are not known take many more."""
    found = [listened(unreal("gemma3", layers)) for layers in (2, 3)]
    assert (found[1] - found[0]).total() > 3 * LAUNCHES_PER_LAYER_MAX


@pytest.mark.parametrize("family", FAMILIES)
def test_which_models_run_fused(family: str) -> None:
    model = build(family)
    unknown = f"layers of {type(model).__name__} are not known"
    assert fused_layers.problem(model) == ("" if family in FUSED else unknown)


def test_biases_of_the_first_products(monkeypatch: pytest.MonkeyPatch) -> None:
    def qwen2(layers: int) -> PreTrainedModel:
        shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "initializer_range": 0.3}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCAB_SIZE, num_hidden_layers=layers, **shape, **heads))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter)
        return model

    monkeypatch.setitem(FAMILIES, "qwen2", qwen2)  # type: ignore[arg-type]
    rig = Rig("qwen2", attention=TreeAttention.name, dtype=torch.float16)
    assert rig.engine.not_fused == ""
    a_tree_equals_its_branches_alone(rig)


def test_the_models_own_modules_compute_the_same_bits_as_before() -> None:
    """Their weights are parts of larger tensors now, in memory once, however often an engine is built of them."""
    token_ids = torch.tensor([random_line(9, seed=1)])
    model, untouched = build("qwen3"), build("qwen3")
    fused_layers.FusedLayers(model, joined)
    attention: Any = model.get_submodule("model.layers.0.self_attn")
    storages = [layer.weight.untyped_storage().data_ptr() for layer in (attention.q_proj, attention.v_proj)]
    fused_layers.FusedLayers(model, joined)
    assert [attention.q_proj.weight.untyped_storage().data_ptr()] * 2 == storages
    with torch.inference_mode():
        found, expected = (each(input_ids=token_ids, use_cache=False).logits for each in (model, untouched))
    assert torch.equal(found, expected)


def test_what_is_not_known_runs_on_its_own_modules() -> None:
    hooked = build("llama")
    hooked.get_submodule("model.layers.1").register_forward_hook(lambda *_: None)
    assert engine_of(hooked).not_fused == "its modules have hooks"
    relu = build("llama")
    relu.config.hidden_act = "relu"
    assert fused_layers.problem(relu) == "its layers are gated by relu, not by silu"
    divided = build("llama")
    norm: Any = divided.get_submodule("model.norm")
    norm.weight = type("Part", (nn.Parameter,), {})(norm.weight.data)
    assert "divided" in fused_layers.problem(divided)
    usual = Engine(build("llama"), max_sessions=1, max_context=64, attention="torch")
    assert usual.not_fused == "they are for attention tree, and it is torch"


def test_kernels_that_fail_or_err_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the model then runs on its own modules."""

    def fail(*_: object) -> Tensor:
        raise RuntimeError("no such instruction\nat all")

    with monkeypatch.context() as patch:
        patch.setattr(layer_kernels, "gated", fail)
        engine = engine_of(build("llama"))
        assert engine.not_fused == "the kernels do not run here (RuntimeError: no such instruction)"
    with monkeypatch.context() as patch:
        patch.setattr(layer_kernels, "gated", lambda both: both.chunk(2, 1)[1].contiguous())
        engine = engine_of(build("llama"))
        assert engine.not_fused.startswith("the kernels compute something else than torch does here, by ")
    assert listened(engine)["write"] == 2 * 2
