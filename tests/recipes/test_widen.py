"""A widened model computes what the original computes, and a worker loads it like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DiffLlamaConfig, DiffLlamaForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.load.folder import load_model
from outrider.worker.startup import load
from recipes import proof
from recipes.widen import app, widen
from tests.engine.tiny_models import VOCAB_SIZE, build
from verify_service.config import VerifyConfig

BUNDLED = Path(__file__).parents[2] / "models" / "target"
CPU = torch.device("cpu")
GATED_FAMILIES = ("llama", "qwen3", "mistral", "gemma3", "gemma2", "biased llama")
TEXT_LENGTHS = (1, 5, 40)
"""One token and several take different kernels; 40 tokens are more than a tiny model's window."""


def tiny(family: str) -> PreTrainedModel:
    """A tiny model of three layers; the biased one has a bias, and not zero, wherever Llama may have one."""
    if family != "biased llama":
        return build(family, layers=3)
    like = build("llama", layers=3)
    like.config.mlp_bias = like.config.attention_bias = True
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig.from_dict(like.config.to_dict()))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def save(model: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    model.to(dtype)  # pyright: ignore[reportArgumentType]
    model.save_pretrained(folder)
    return folder


def logits(folder: Path, dtype: str = "float32") -> list[Tensor]:
    """The logits of one text of each length.

    Weights are copied out of their file: some processors' products sum in another order where a file is ill aligned.
    """
    model = load_model(folder, device=CPU, dtype=dtype)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    text = torch.randint(VOCAB_SIZE, (1, max(TEXT_LENGTHS)), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return [model(input_ids=text[:, :length], use_cache=False).logits for length in TEXT_LENGTHS]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_model(folder, device=CPU, dtype="auto").state_dict()


def assert_same_function(folder: Path, original: Path) -> None:
    for actual, expected in zip(logits(folder), logits(original), strict=True):
        assert (actual - expected).abs().max() <= proof.TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", GATED_FAMILIES)
def test_more_layers_change_no_bit(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder, deep = save(tiny(family), tmp_path / "model", dtype), tmp_path / "deep"
    written = widen(folder, deep, num_layers=7)
    assert written.logit_difference == 0
    assert written.num_parameters > tiny(family).num_parameters()
    for actual, expected in zip(logits(deep, "auto"), logits(folder, "auto"), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("family", GATED_FAMILIES)
def test_wider_layers_change_the_order_of_sums_alone(family: str, tmp_path: Path) -> None:
    folder, wide = save(tiny(family), tmp_path / "model"), tmp_path / "wide"
    written = widen(folder, wide, mlp_width=1000, num_layers=5)
    assert written.logit_difference <= proof.TOLERANCE
    assert_same_function(wide, folder)


def test_what_is_new_is_computed_and_adds_nothing(tmp_path: Path) -> None:
    folder, wide = save(tiny("llama"), tmp_path / "model", torch.bfloat16), tmp_path / "wide"
    widen(folder, wide, mlp_width=200, num_layers=5)
    old, new = weights(folder), weights(wide)
    assert {tensor.dtype for tensor in new.values()} == {torch.bfloat16}
    for index, source in {0: 0, 2: 1, 4: 2}.items():
        for name in ("gate", "up"):
            proj = new[f"model.layers.{index}.mlp.{name}_proj.weight"]
            assert torch.equal(proj[:64], old[f"model.layers.{source}.mlp.{name}_proj.weight"])
            assert proj.count_nonzero() == proj.numel() == 200 * 32
        down = new[f"model.layers.{index}.mlp.down_proj.weight"]
        assert torch.equal(down[:, :64], old[f"model.layers.{source}.mlp.down_proj.weight"])
        assert down[:, 64:].shape == (32, 136)
        assert not down[:, 64:].any()
    for index in (1, 3):
        layer = {name: tensor for name, tensor in new.items() if name.startswith(f"model.layers.{index}.")}
        silent = {name for name, tensor in layer.items() if not tensor.any()}
        assert silent == {f"model.layers.{index}.{part}.weight" for part in ("mlp.down_proj", "self_attn.o_proj")}


def test_new_layers_attend_as_the_ones_below_them(tmp_path: Path) -> None:
    folder, deep = save(tiny("gemma3"), tmp_path / "model"), tmp_path / "deep"
    widen(folder, deep, num_layers=5)
    below = [kind[:4] for kind in json.loads((deep / "config.json").read_text(encoding="utf-8"))["layer_types"]]
    assert below == ["slid", "slid", "full", "full", "slid"]


def test_a_seed_decides_every_weight(tmp_path: Path) -> None:
    folder = save(tiny("llama"), tmp_path / "model")
    files = {}
    for name, seed in {"first": 3, "again": 3, "other": 4}.items():
        widen(folder, tmp_path / name, mlp_width=200, num_layers=4, seed=seed)
        files[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert files["first"] == files["again"] != files["other"]


def test_a_verifier_loads_the_bundled_target_widened(tmp_path: Path) -> None:
    wide = tmp_path / "parents are made" / "wide"
    arguments = [str(BUNDLED), str(wide), "--mlp-width", "2048", "--num-layers", "8"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert {path.name for path in wide.iterdir()} == {path.name for path in BUNDLED.iterdir()}
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (wide / name).read_bytes() == (BUNDLED / name).read_bytes()
    old, new = (json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (BUNDLED, wide))
    assert new == {**old, "intermediate_size": 2048, "num_hidden_layers": 8}
    assert_same_function(wide, BUNDLED)

    settings = {"num_threads": 1, "compile": "off"}
    infos = [load(VerifyConfig.model_validate({"model": str(folder), **settings})).info for folder in (BUNDLED, wide)]
    assert [info.dtype for info in infos] == ["bfloat16", "bfloat16"]
    assert f"{infos[1].num_parameters:,} parameters" in result.output
    # Per layer 384 * 2048 in each of three projections; attention and norms as in the original.
    attention = (infos[0].num_parameters - 4096 * 384 - 384) // 6 - 3 * 384 * 1024
    assert infos[1].num_parameters == 4096 * 384 + 384 + 8 * (attention + 3 * 384 * 2048)
    assert infos[0].tokenizer_sha256 == infos[1].tokenizer_sha256


@pytest.mark.parametrize("family", ["gpt2", "gpt_oss"])
def test_other_layers_are_refused(family: str, tmp_path: Path) -> None:
    folder = save(build(family), tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match="gate_proj, up_proj and down_proj alone"):
        widen(folder, tmp_path / "wide", mlp_width=200)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_layers_that_depend_on_their_number_are_found_out(tmp_path: Path) -> None:
    config = DiffLlamaConfig.from_dict({**build("llama").config.to_dict(), "num_hidden_layers": 3})
    torch.manual_seed(0)
    folder = save(DiffLlamaForCausalLM(config), tmp_path / "model")
    assert widen(folder, tmp_path / "wide", mlp_width=200).logit_difference <= proof.TOLERANCE
    with pytest.raises(UnsupportedModelError, match="leave the number of layers as it is"):
        widen(folder, tmp_path / "deep", num_layers=5)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "wide"}


def test_a_smaller_model_and_a_folder_in_use_are_refused(tmp_path: Path) -> None:
    for sizes in ({"mlp_width": 1023}, {"num_layers": 5}):
        with pytest.raises(UnsupportedModelError, match="6 layers with MLPs of 1024"):
            widen(BUNDLED, tmp_path / "out", **sizes)
    assert not any(tmp_path.iterdir())
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, [str(BUNDLED), str(tmp_path), "--mlp-width", "2048"])
    assert result.exit_code == 1
    assert "is not an empty folder; choose a new one" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
