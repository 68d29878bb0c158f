"""Tiny random decoders of several families, built in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB_SIZE = 61
MAX_CONTEXT = 256
_SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_CONTEXT,
    "initializer_range": 0.3,  # logits far apart, so that near-ties do not decide the tests
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}


def _llama(layers: int) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**_SHAPE, num_hidden_layers=layers))


def _qwen3(layers: int) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**_SHAPE, num_hidden_layers=layers, head_dim=16))


def _mistral(layers: int) -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**_SHAPE, num_hidden_layers=layers, sliding_window=7))


def _gpt2(layers: int) -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=32,
        n_layer=layers,
        n_head=4,
        n_positions=MAX_CONTEXT,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def _gemma3(layers: int) -> PreTrainedModel:
    kinds = ["sliding_attention", "full_attention"] * layers
    config = Gemma3TextConfig(
        **_SHAPE, num_hidden_layers=layers, head_dim=16, sliding_window=7, layer_types=kinds[:layers]
    )
    return Gemma3ForCausalLM(config)


def _gemma2(layers: int) -> PreTrainedModel:
    return Gemma2ForCausalLM(
        Gemma2Config(**_SHAPE, num_hidden_layers=layers, head_dim=16, sliding_window=7, query_pre_attn_scalar=16)
    )


def _gpt_oss(layers: int) -> PreTrainedModel:
    config = GptOssConfig(
        **_SHAPE, num_hidden_layers=layers, head_dim=16, sliding_window=7, num_local_experts=4, num_experts_per_tok=2
    )
    return GptOssForCausalLM(config)


def _deepseek(layers: int) -> PreTrainedModel:
    config = DeepseekV3Config(
        **{**_SHAPE, "num_key_value_heads": 4},
        num_hidden_layers=layers,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        first_k_dense_replace=layers,
    )
    return DeepseekV3ForCausalLM(config)


FAMILIES: Mapping[str, Callable[[int], PreTrainedModel]] = {
    "llama": _llama,
    "qwen3": _qwen3,
    "mistral": _mistral,
    "gpt2": _gpt2,
    "gemma3": _gemma3,
    "gemma2": _gemma2,
    "gpt_oss": _gpt_oss,
    "deepseek": _deepseek,
}
"""Full and sliding attention, learned and rotary positions, soft-capping, sinks, unequal key and value sizes."""


def build(family: str, *, layers: int = 2, seed: int = 0) -> PreTrainedModel:
    """A random model of `family` in fp32, the same for the same seed."""
    torch.manual_seed(seed)
    model = FAMILIES[family](layers).eval()
    model.set_attn_implementation("eager")
    return model
