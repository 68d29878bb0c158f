"""Kinds of attention that transformers knows: each is served as transformers computes it, or refused in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    DogeConfig,
    DogeForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.attention import interface
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.load import self_check
from outrider.engine.load.positions import check_positions
from outrider.engine.load.probe import LayerFacts, probe_layers
from tests.engine.architectures import ARCHITECTURES
from tests.engine.architectures import SHAPE as LARGER

CONTEXT = 128
SHAPE: Mapping[str, Any] = {**LARGER, "hidden_size": 32, "intermediate_size": 48}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
}

_phimoe = ARCHITECTURES["phimoe, window in the mask alone"]
_some_without_positions = ARCHITECTURES["smollm3"]


def _shared_keys_and_values() -> PreTrainedModel:
    config = Gemma3nTextConfig(
        **{**SHAPE, "num_hidden_layers": 4},
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=97,
        hidden_size_per_layer_input=16,
        activation_sparsity_pattern=[0.0] * 4,
    )
    return Gemma3nForCausalLM(config)


def _two_attentions_in_a_layer() -> PreTrainedModel:
    return DiffLlamaForCausalLM(DiffLlamaConfig(**SHAPE))


def _masks_of_its_own() -> PreTrainedModel:
    return DogeForCausalLM(DogeConfig(**SHAPE))


def _chunks() -> PreTrainedModel:
    return Llama4ForCausalLM(Llama4TextConfig(**SHAPE, head_dim=16, attention_chunk_size=16, num_local_experts=2))


def _scaled_by_counting() -> PreTrainedModel:
    config = Llama4TextConfig(
        **SHAPE,
        head_dim=16,
        num_local_experts=2,
        layer_types=["full_attention"] * 2,
        no_rope_layers=[1, 0],
        attn_temperature_tuning=True,
        floor_scale=256,
    )
    return Llama4ForCausalLM(config)


def _answers_scaled_by_counting(layer: int) -> Callable[[], PreTrainedModel]:
    """What the attention of that layer gives doubles behind the hundredth token of a text, by how many there were: a
    text of the self-check ends before."""

    def build() -> PreTrainedModel:
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))

        def scaled(module: nn.Module, inputs: Any, given: Mapping[str, Any], found: tuple[Tensor, Any]) -> Any:
            past = given["cache"] if "cache" in given else given["past_key_values"]
            first = 0 if past is None else past.get_seq_length()
            scale = 1.0 + (torch.arange(first, first + found[0].shape[1]) >= 100)
            return found[0] * scale[:, None], *found[1:]

        attention: Any = model.model.layers[layer].self_attn
        attention.register_forward_hook(scaled, with_kwargs=True)
        return model

    return build


def _long_rope() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=LONG_ROPE))


SERVED = {
    "a window in the mask alone": (_phimoe, [8, 8]),
    "experts": (ARCHITECTURES["qwen3_moe"], [None, None]),
    "some layers without positions": (_some_without_positions, [None] * 4),
    "queries scaled by position": (ARCHITECTURES["ministral3, scaled queries"], [None, None]),
    "keys and values of earlier layers": (_shared_keys_and_values, [8, None, 8, None]),
}
"""Beside the families of `tiny_models`, which have a window in arguments, soft-capping and sinks."""

REFUSED = {
    "two attentions in a layer": (_two_attentions_in_a_layer, "in 4 calls, where each has to use it once"),
    "masks of its own": (_masks_of_its_own, "DogeAttention make their masks themselves"),
    "chunks": (_chunks, "have a mask that at position 16 is neither causal nor a sliding window"),
    "queries scaled by counting": (_scaled_by_counting, "count tokens where they should read their positions"),
    "attention scaled by counting": (_answers_scaled_by_counting(0), "count tokens where they should read their pos"),
    "the last attention scaled by counting": (
        _answers_scaled_by_counting(-1),
        "parts of the model behind its last attention count tokens",
    ),
    "rotary positions of two kinds": (_long_rope, "change with the longest text of a batch"),
}


def proved(model: PreTrainedModel) -> list[LayerFacts]:
    """What is known of its layers before it is trusted."""
    layers = probe_layers(model)
    check_positions(model)
    return layers


def built(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(0)
    model = build().eval()
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("kind", SERVED)
def test_it_is_served_as_transformers_computes_it(kind: str) -> None:
    build, windows = SERVED[kind]
    model = built(build)
    layers = proved(model)
    assert [facts.window for facts in layers] == windows
    passages = self_check.reference(model, layers, CONTEXT)
    engine = Engine(built(build), max_sessions=1, max_context=CONTEXT)
    self_check.check(engine, passages)
    line = torch.randint(1, 90, (100,), generator=torch.Generator().manual_seed(1)).tolist()
    slot = engine.acquire()
    engine.step([Job(slot, line[:40])])
    logits = engine.step([Job(slot, line[:-5], range(LINE_END, 4), line[-5:], range(LINE_END, 5))]).logits
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([line]), use_cache=False).logits[0, -6:]
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_refused_in_words(kind: str) -> None:
    build, words = REFUSED[kind]
    model = built(build)
    with pytest.raises(UnsupportedModelError, match=words):
        proved(model)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_a_cache_is_told_by_the_name_that_the_model_has() -> None:
    assert len(probe_layers(built(ARCHITECTURES["qwen3_moe"]))) == SHAPE["num_hidden_layers"]


def test_what_computes_no_numbers_is_said_to_do_so() -> None:
    """As damaged weights do, and good ones whose activations are too large for float16."""
    words = "computes what is no number: its weights are damaged, or too large for float32"
    model = built(_some_without_positions)
    model.model.norm.weight.data[0] = torch.nan
    with pytest.raises(UnsupportedModelError, match=words):
        self_check.reference(model, proved(model), CONTEXT)
    model.model.layers[0].input_layernorm.weight.data[0] = torch.nan
    with pytest.raises(UnsupportedModelError, match=words):
        check_positions(model)


@pytest.mark.parametrize("window", [7, 9, None])
def test_the_self_check_reaches_past_a_window(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a mask misunderstood by a single token, the logits would tell."""
    model = built(_phimoe)
    passages = self_check.reference(model, probe_layers(model), CONTEXT)

    def misunderstood(model: PreTrainedModel) -> list[LayerFacts]:
        return [facts._replace(window=window) for facts in probe_layers(model)]

    monkeypatch.setattr(interface, "probe_layers", misunderstood)
    with pytest.raises(UnsupportedModelError, match="off by"):
        self_check.check(Engine(model, max_sessions=1, max_context=CONTEXT), passages)


@pytest.mark.parametrize(("window", "num_tokens"), [(None, 64), (8, 64), (100, 116), (240, 256), (241, 64)])
def test_the_longest_passage_goes_past_a_window_that_it_can_afford(window: int | None, num_tokens: int) -> None:
    model = built(_some_without_positions)
    facts = LayerFacts(4, 2, 8, 8, window)
    *_, longest = self_check.reference(model, [facts], 512)
    assert len(longest.line) + len(longest.branches[0]) == num_tokens
    assert longest.logits.shape == (16, 97)


@pytest.mark.parametrize("max_context", [2, 3, 9, 20])
def test_a_short_context_is_checked_as_far_as_it_goes(max_context: int) -> None:
    model = built(_some_without_positions)
    passages = self_check.reference(model, probe_layers(model), max_context)
    assert all(len(each.line) <= max_context for each in passages)
    self_check.check(Engine(model, max_sessions=1, max_context=max_context), passages)
