"""Quantized checkpoints: each layout computes what its dense twin computes, and what is not known is refused."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.load.folder import check_folder, load_weights, quantization
from outrider.engine.load.streaming import load_streaming
from outrider.engine.quantized.linear import QuantizedLinear, kept_as, num_parameters, weight_tensors
from outrider.engine.quantized.part import Part
from outrider.engine.quantized.scheme import scheme_of
from tests.e2e.stack import load_tiny, save_tiny
from tests.engine.folders import edit
from tests.engine.quantized import LAYOUTS, stored
from tests.engine.tiny_models import VOCAB_SIZE, build

CPU = torch.device("cpu")


def logits(model: PreTrainedModel) -> Tensor:
    token_ids = torch.arange(20)[None] * 7 % VOCAB_SIZE
    with torch.inference_mode():
        return model(input_ids=token_ids, use_cache=False).logits


def kept(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """As on a GPU."""
    config: Any = AutoConfig.from_pretrained(folder)
    scheme = quantization(config)
    return load_streaming(folder, config, device=CPU, dtype=dtype, scheme=scheme, keeps=True).model.eval()


CASES = [*((layout, "llama") for layout in LAYOUTS), ("fp8 in blocks", "qwen3"), ("awq", "qwen3")]


@pytest.mark.parametrize(("layout", "family"), CASES)
def test_a_layout_computes_what_its_twin_computes(layout: str, family: str, tmp_path: Path) -> None:
    twin = stored(tmp_path, layout, family)
    check_folder(tmp_path)
    full = load_weights(tmp_path, device=CPU, dtype="float32")
    few_bits = kept(tmp_path)
    assert (kept_as(full), kept_as(few_bits)) == ("full", layout[:3] if layout[:3] == "fp8" else "int4")
    assert torch.equal(logits(full), logits(twin))
    assert torch.allclose(logits(few_bits), logits(twin), atol=1e-5, rtol=1e-5)
    assert {type(module).__name__ for module in few_bits.model.layers.modules()} >= {"QuantizedLinear"}
    assert num_parameters(few_bits) == num_parameters(twin) == sum(each.numel() for each in twin.parameters())


def test_in_16_bits_each_weight_is_rounded_once(tmp_path: Path) -> None:
    twin = stored(tmp_path, "awq")
    full = load_weights(tmp_path, device=CPU, dtype="bfloat16")
    assert all(
        torch.equal(one, other.bfloat16()) for one, other in zip(full.parameters(), twin.parameters(), strict=True)
    )


def test_weights_that_are_kept_take_the_bits_they_are_stored_in(tmp_path: Path) -> None:
    twin = stored(tmp_path, "awq", "qwen3")
    whole = sum(each.nbytes for each in twin.model.layers.parameters())
    few = sum(each.nbytes for each in weight_tensors(kept(tmp_path).model.layers))
    assert few < 0.3 * whole  # 4 bits of 32, scales, and what is not a linear layer


def test_a_worker_says_in_what_it_keeps_them(tmp_path: Path) -> None:
    folder = save_tiny(build("llama", layers=1), tmp_path)
    stored(folder, "awq")
    info = load_tiny(folder, weights="int4").info
    assert (info.weights, info.dtype, info.kv_cache_dtype) == ("full", "float32", "auto")  # on a CPU


@pytest.mark.parametrize("weights", ["fp8", "int4"])
def test_weights_that_were_asked_for_have_to_be_stored_so(weights: Any, tmp_path: Path) -> None:
    stored(tmp_path, "fp8 per tensor" if weights == "int4" else "awq")
    with pytest.raises(
        UnsupportedModelError, match=f"--weights {weights}: those of .* are in (fp8|int4); take a folder"
    ):
        check_folder(tmp_path, weights)


def test_weights_that_are_to_be_divided_are_whole_on_a_cpu(tmp_path: Path) -> None:
    """As without ranks. What a rank keeps on a GPU, `tests/parallel` has."""
    stored(tmp_path, "awq")
    assert kept_as(load_weights(tmp_path, device=CPU, dtype="float32", part=Part(0, 2))) == "full"
    with pytest.raises(UnsupportedModelError, match=r"16 inputs are no whole groups of 32; .* --weights full"):
        load_weights(tmp_path, device=torch.device("cuda"), dtype="float32", part=Part(0, 2))
    full = load_weights(tmp_path, device=torch.device("cuda"), dtype="float32", weights="full", part=Part(0, 2))
    assert (kept_as(full), full.device) == ("full", CPU)


def says(layout: str, **changes: object) -> tuple[str, Callable[[dict[str, Any]], object]]:
    return layout, lambda entries: entries.update(changes)


def group(**changes: object) -> tuple[str, Callable[[dict[str, Any]], object]]:
    return "fp8 per channel", lambda entries: entries["config_groups"]["group_0"]["weights"].update(changes)


UNKNOWN = {
    "bits and bytes": (says("awq", quant_method="bitsandbytes"), "'bitsandbytes' are not read; take the folder"),
    "no method": (says("awq", quant_method=None), "None are not read"),
    "a method that is no name": (says("awq", quant_method=["awq"]), "not read"),
    "three bits": (says("gptq", bits=3), "bits is 3 .*not 4"),
    "bits in words": (says("gptq", bits="4"), "bits is '4'"),
    "a bit that is true": (says("gptq", bits=True), "bits is True"),
    "an odd group": (says("awq", group_size=48), "group_size is 48, where a multiple of 32"),
    "no group": (says("awq", group_size=0), "group_size is 0"),
    "another version": (says("awq", version="gemv"), "version 'gemv'"),
    "no zero points": (says("awq", zero_point=False), "zero_point is False"),
    "Marlin's format": (says("gptq", checkpoint_format="marlin"), "format 'marlin'"),
    "layers of their own": (says("gptq", dynamic={"x": {"bits": 8}}), "dynamic"),
    "a block without width": (says("fp8 in blocks", weight_block_size=[128, 0]), r"blocks of \[128, 0\]"),
    "a block of three": (says("fp8 in blocks", weight_block_size=[1, 128, 128]), "blocks of"),
    "another fp8": (says("fp8 in blocks", fmt="e5m2"), "fmt is 'e5m2'"),
    "an unknown activation scheme": (says("fp8 in blocks", activation_scheme="x"), "activation_scheme is 'x'"),
    "packed numbers": (says("fp8 per channel", format="pack-quantized"), "format is 'pack-quantized'"),
    "sparse": (says("fp8 per channel", sparsity_config={"format": "sparse-24-bitmask"}), "format is 'sparse-24"),
    "rotations": (says("fp8 per channel", transform_config={"config_groups": {}}), "transforms"),
    "groups that are a list": (says("fp8 per channel", config_groups=[1]), "makes no sense"),
    "no groups": (says("fp8 per channel", config_groups={}), "which have none"),
    "integers": (group(type="int"), "type is 'int'"),
    "an unknown strategy": (group(strategy="token"), "strategy is 'token'"),
    "asymmetric": (group(symmetric=False), "symmetric is False"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_refused_in_words(name: str) -> None:
    (layout, spoil), words = UNKNOWN[name]
    entries = deepcopy(LAYOUTS[layout][0])
    spoil(entries)
    with pytest.raises(UnsupportedModelError, match=words) as refused:
        scheme_of(entries)
    assert "take the folder of the same model in 16 bits" in str(refused.value)


def test_it_is_refused_before_the_weights_are_read(tmp_path: Path) -> None:
    stored(tmp_path, "gptq")
    edit(tmp_path / "config.json", quantization_config={"quant_method": "gptq", "bits": 3})
    with pytest.raises(UnsupportedModelError, match=r"cannot make the model .*config.json describes: bits is 3"):
        check_folder(tmp_path)


def test_experts_in_few_bits_are_refused_and_de_quantized_if_told_to(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 32, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
    torch.manual_seed(3)
    mixture = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(vocab_size=VOCAB_SIZE, num_experts=4, num_experts_per_tok=2, **sizes, **heads)
    ).eval()
    mixture.save_pretrained(tmp_path)
    says, quantize = LAYOUTS["fp8 in blocks"]
    whole = load_file(tmp_path / "model.safetensors")
    tensors, dense = dict(whole), dict(whole)
    for name in whole:
        if ".experts." in name:
            quantized = quantize(tensors.pop(name))
            base = name.removesuffix(".weight")
            tensors |= {f"{base}.{end}": tensor for end, tensor in quantized.tensors.items()}
            dense[name] = quantized.dense
    save_file(dense, tmp_path / "model.safetensors")
    twin = load_weights(tmp_path, device=CPU, dtype="float32")
    save_file(tensors, tmp_path / "model.safetensors")
    edit(tmp_path / "config.json", quantization_config=says)
    with pytest.raises(UnsupportedModelError, match=r"12 quantized weights .* are not of linear layers.*experts.*"):
        kept(tmp_path)
    assert torch.equal(logits(load_weights(tmp_path, device=CPU, dtype="float32")), logits(twin))


Q = "model.layers.0.self_attn.q_proj"

WRONG: dict[str, tuple[str, Callable[[dict[str, Tensor]], object], str]] = {
    "no scale": ("fp8 in blocks", lambda tensors: tensors.pop(f"{Q}.weight_scale_inv"), "lacks .*weight_scale_inv"),
    "scales of another shape": (
        "fp8 in blocks",
        lambda tensors: tensors.update({f"{Q}.weight_scale_inv": torch.ones(3, 3)}),
        r"weight_scale_inv is \[3, 3\], not \[2, 1\]",
    ),
    "another fp8": (
        "fp8 per tensor",
        lambda tensors: tensors.update({f"{Q}.weight": torch.zeros(32, 32).to(torch.float8_e5m2)}),
        "q_proj.weight is F8_E5M2, not F8_E4M3",
    ),
    "scales of words": (
        "fp8 per tensor",
        lambda tensors: tensors.update({f"{Q}.weight_scale": torch.ones(1, dtype=torch.int32)}),
        "weight_scale is I32",
    ),
    "no zeros": ("awq", lambda tensors: tensors.pop(f"{Q}.qzeros"), "lacks .*qzeros"),
    "zeros of another shape": (
        "gptq",
        lambda tensors: tensors.update({f"{Q}.qzeros": torch.zeros(2, 4, dtype=torch.int32)}),
        r"qzeros is \[2, 4\], not \[1, 4\]",
    ),
    "no whole groups": (
        "awq",
        lambda tensors: tensors.update({f"{Q}.qweight": torch.zeros(40, 4, dtype=torch.int32)}),
        "40 inputs and 32 outputs, which are no whole groups of 32",
    ),
    "none of it": (
        "gptq",
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.endswith(".qweight")],
        "no tensor is in int4",
    ),
    "none of it, in eight bits": (
        "fp8 per tensor",
        lambda tensors: tensors.update({name: tensor.float() for name, tensor in tensors.items()}),
        "no tensor is in fp8",
    ),
    "both": ("awq", lambda tensors: tensors.update({f"{Q}.weight": torch.zeros(32, 32)}), "both quantized and whole"),
}


def changed(folder: Path, spoil: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    spoil(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("name", WRONG)
def test_tensors_that_do_not_fit_are_refused_before_they_are_read(name: str, tmp_path: Path) -> None:
    layout, spoil, words = WRONG[name]
    stored(tmp_path, layout)
    changed(tmp_path, spoil)
    with pytest.raises(UnsupportedModelError, match=words):
        check_folder(tmp_path)


DAMAGED: dict[str, tuple[str, Callable[[dict[str, Tensor]], object], str]] = {
    "groups of several sizes": (
        "gptq, inputs in another order",
        lambda tensors: tensors["model.layers.0.mlp.down_proj.g_idx"].fill_(1),
        "g_idx does not name groups of 32 inputs",
    ),
    "no number": (
        "fp8 per tensor",
        lambda tensors: tensors[f"{Q}.weight"].view(torch.uint8)[3].fill_(0xFF),
        "q_proj.weight has elements that are no numbers",
    ),
    "an infinite scale": (
        "awq",
        lambda tensors: tensors[f"{Q}.scales"].fill_(float("inf")),
        "scales has scales that are no numbers",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_makes_no_sense_is_refused_when_it_is_read(name: str, tmp_path: Path) -> None:
    layout, spoil, words = DAMAGED[name]
    stored(tmp_path, layout)
    changed(tmp_path, spoil)
    with pytest.raises(UnsupportedModelError, match=words):
        load_weights(tmp_path, device=CPU, dtype="float32")
    with pytest.raises(UnsupportedModelError, match=words):
        kept(tmp_path)


def test_a_quantized_embedding_is_not_kept(tmp_path: Path) -> None:
    stored(tmp_path, "fp8 per tensor")
    name = "model.embed_tokens.weight"
    changed(
        tmp_path,
        lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn), f"{name}_scale": torch.ones(1)}),
    )
    with pytest.raises(
        UnsupportedModelError, match=r"1 quantized weights \(model.embed_tokens.weight\) .*--weights full"
    ):
        kept(tmp_path)
    assert load_weights(tmp_path, device=CPU, dtype="float32")


def test_a_layer_is_itself_whatever_the_shape_of_its_input(tmp_path: Path) -> None:
    stored(tmp_path, "gptq, inputs in another order")
    layer = kept(tmp_path).model.layers[0].mlp.down_proj
    assert isinstance(layer, QuantizedLinear)
    x = torch.randn(2, 3, layer.in_features)
    dense = layer.weight_in_few_bits.dequantized(torch.float32)
    assert torch.allclose(layer(x), x @ dense.T, atol=1e-5)
