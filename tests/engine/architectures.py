"""Decoders of many architectures, tiny and random, with windows, biases and sizes that kernels find awkward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from tests.engine import tiny_models

SHAPE: Mapping[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # logits far apart
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
_SCALED = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

Build = Callable[[], PreTrainedModel]


def _of(family: str, *, leave_out: str = "", config: str = "Config", **changes: object) -> Build:
    """A model of transformers' `family` in SHAPE, without the entry `leave_out`, with `changes`."""
    shape = {name: value for name, value in {**SHAPE, **changes}.items() if name != leave_out}

    def build() -> PreTrainedModel:
        made = getattr(transformers, f"{family}{config}")(**shape)
        return getattr(transformers, f"{family}ForCausalLM")(made)

    return build


_llama = partial(_of, "Llama")
_qwen3 = partial(_of, "Qwen3")


def _opt() -> PreTrainedModel:
    config = transformers.OPTConfig(
        vocab_size=97,
        hidden_size=48,
        num_hidden_layers=2,
        ffn_dim=80,
        num_attention_heads=4,
        max_position_embeddings=512,
        init_std=0.3,
        word_embed_proj_dim=48,
    )
    return transformers.OPTForCausalLM(config)


def _gemma3_with_pictures() -> PreTrainedModel:
    text = {**SHAPE, "vocab_size": 128, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=100,
        boi_token_index=101,
        eoi_token_index=102,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


ARCHITECTURES: Mapping[str, Build] = {
    **{name: partial(tiny_models.build, name) for name in tiny_models.FAMILIES},
    "phimoe, window in the mask alone": _of("Phimoe", sliding_window=8, num_local_experts=4, num_experts_per_tok=2),
    "phimoe": _of("Phimoe", num_local_experts=4, num_experts_per_tok=2),
    "mixtral, window": _of("Mixtral", sliding_window=8, num_local_experts=4),
    "phi3, window": _of("Phi3", sliding_window=8, num_key_value_heads=4),
    "starcoder2, window": _of("Starcoder2", sliding_window=8),
    "qwen2, a window in some layers": _of("Qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "qwen2, a window that is not used": _of("Qwen2", use_sliding_window=False, sliding_window=8, max_window_layers=1),
    "qwen2_moe, a window in some layers": _of(
        "Qwen2Moe",
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=1,
        shared_expert_intermediate_size=32,
        **_EXPERTS,
    ),
    "qwen3_moe": _of("Qwen3Moe", head_dim=16, **_EXPERTS),
    "cohere": _of("Cohere", use_qk_norm=True),
    "cohere2": _of("Cohere2", sliding_window=8, num_hidden_layers=4),
    "olmo2": _of("Olmo2"),
    "olmo3": _of("Olmo3", sliding_window=8, num_hidden_layers=4),
    "exaone4": _of("Exaone4", sliding_window=8, sliding_window_pattern=2, num_hidden_layers=4),
    "smollm3": _of("SmolLM3", num_hidden_layers=4),
    "gemma": _of("Gemma", head_dim=16),
    "gemma3 with pictures": _gemma3_with_pictures,
    "vaultgemma": _of("VaultGemma", head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    "ministral3, scaled queries": _of(
        "Ministral3", leave_out="sliding_window", head_dim=16, rope_parameters=_YARN | _SCALED
    ),
    "gpt_neox, a part rotated": _of("GPTNeoX", leave_out="num_key_value_heads", rotary_pct=0.25),
    "phi, a part rotated": _of("Phi", partial_rotary_factor=0.5, qk_layernorm=True, num_key_value_heads=4),
    "stablelm": _of("StableLm", partial_rotary_factor=0.5, qk_layernorm=True),
    "glm4": _of("Glm4", head_dim=16, partial_rotary_factor=0.5),
    "granite": _of(
        "Granite",
        logits_scaling=3.0,
        residual_multiplier=0.3,
        embedding_multiplier=2.0,
        attention_multiplier=0.1,
    ),
    "opt": _opt,
    "llama, yarn": _llama(rope_parameters=_YARN),
    "llama, its own rotary scale": _llama(rope_parameters=_LLAMA3 | {"original_max_position_embeddings": 32}),
    "llama, linear rotary scale": _llama(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}),
    "llama, biases": _llama(attention_bias=True, mlp_bias=True),
    "llama, tied": _llama(tie_word_embeddings=True),
    "llama, 77 inner": _llama(intermediate_size=77),
    **{f"llama, {size} tokens": _llama(vocab_size=size) for size in (32, 33, 101, 257, 1003)},
    **{f"qwen3, heads of {size}": _qwen3(head_dim=size) for size in (8, 10, 12, 20, 24, 40, 72, 80, 96, 112, 120, 160)},
    **{
        f"qwen3, {heads} heads in {groups}": _qwen3(head_dim=16, num_attention_heads=heads, num_key_value_heads=groups)
        for heads, groups in ((14, 2), (9, 3), (7, 1), (25, 5), (20, 1))
    },
}
"""Each by what it is."""


def save(name: str, folder: Path) -> Path:
    """Saves an architecture's model with weights that bfloat16 holds, the same in each call. None is left at a constant
    that would hide it: no bias of 0, no gain of 1."""
    torch.manual_seed(0)
    model = ARCHITECTURES[name]().to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder
