"""The draft model: where it begins, its mask token, its hidden states over text and masks, and its folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from outrider.core.protocol.vocabulary import vocabulary_sha256
from outrider.engine.load.folder import DTYPES, check_folder, tokenizer_file
from recipes import model_folder
from recipes.demo_pair.recipe import RecipeError
from recipes.demo_pair.training import adopt_embedding
from recipes.distill.masks import Masks

HEAD_WIDTH = 64
"""Width of an attention head of a draft from nothing."""

MLP_FACTOR = 3
"""Its MLP is so many times as wide as it is, as the bundled draft's."""

MASK_TOKEN = "pard_token"
"""Under which config.json names the mask token, as PARD's public checkpoints have it."""

VOCABULARY_MULTIPLE = 64
"""Rows of an embedding that grows by a mask token are a multiple of this, as kernels like them."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")


def from_nothing(target: PreTrainedModel, layers: int, width: int, seed: int) -> PreTrainedModel:
    """A small Llama of the target's vocabulary, whose embedding begins as the principal components of the target's."""
    if width % HEAD_WIDTH:
        raise RecipeError(f"--width {width} is no multiple of {HEAD_WIDTH}, the width of a head: choose another.")
    told = target.config.get_text_config()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=told.vocab_size,
        hidden_size=width,
        intermediate_size=MLP_FACTOR * width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD_WIDTH,
        num_key_value_heads=width // HEAD_WIDTH,
        max_position_embeddings=told.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=told.bos_token_id,
        eos_token_id=told.eos_token_id,
        pad_token_id=told.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    adopt_embedding(model, target)
    return model


def load(folder: Path, dtype: str, device: torch.device) -> PreTrainedModel:
    """A folder's model, to learn or to learn from: transformers computes it, not the engine.

    Raises UnsupportedModelError for a folder that cannot be served.
    """
    check_folder(folder)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], trust_remote_code=False)
    model.to(device)  # pyright: ignore[reportArgumentType]
    return model


def check_vocabulary(draft: Path, target: Path) -> None:
    """Raises RecipeError unless both folders give every token id the same meaning."""
    if len({vocabulary_sha256(tokenizer_file(folder).read_bytes()) for folder in (draft, target)}) > 1:
        raise RecipeError(
            f"{draft} and {target} have different vocabularies: begin with a model of the target's family, or without "
            "--draft from nothing."
        )


def check_reach(model: PreTrainedModel, num_tokens: int) -> None:
    """Raises RecipeError unless all layers can be told what masks behind `num_tokens` tokens see."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    if window is not None and window < num_tokens:
        raise RecipeError(
            f"The draft has layers that see {window} tokens, fewer than the {num_tokens} of a text: choose smaller "
            "--prompt-tokens and --answer-tokens, or train without --parallel."
        )
    if model.config._attn_implementation != "sdpa":
        raise RecipeError(
            f"A {model.config.model_type} has no attention that masks fit into: train without --parallel, or begin "
            "with another model."
        )


def mask_token(model: PreTrainedModel) -> int | None:
    """The id of the model's mask token, if it has one."""
    return getattr(model.config.get_text_config(), MASK_TOKEN, None)


def give_mask_token(model: PreTrainedModel, num_tokens: int) -> None:
    """Gives the model a mask token unless it has one: the first id that none of the vocabulary's `num_tokens` tokens
    has. The embedding grows by it where it is not padded. Raises RecipeError for one that is no id."""
    text, known = model.config.get_text_config(), mask_token(model)
    if known is None:
        known = num_tokens
        if text.vocab_size <= known:
            model.resize_token_embeddings(known + 1, pad_to_multiple_of=VOCABULARY_MULTIPLE, mean_resizing=False)
            with torch.no_grad():
                rows = model.get_input_embeddings().get_parameter("weight")
                rows[num_tokens:] = rows[:num_tokens].mean(0)
        setattr(text, MASK_TOKEN, known)
    if not (type(known) is int and 0 <= known < text.vocab_size):
        raise RecipeError(
            f"{MASK_TOKEN} in the draft's config.json is {known!r}: it must be an id below {text.vocab_size}."
        )


def states(model: PreTrainedModel, token_ids: Tensor, masks: Masks | None = None) -> Tensor:
    """What the head makes logits of, [B, T + N, width]: for the tokens [B, T] and N masks behind them."""
    decoder = model.get_decoder()
    if masks is None:
        return decoder(input_ids=token_ids, use_cache=False).last_hidden_state
    mask = mask_token(model)
    assert mask is not None
    behind = token_ids.new_full((len(token_ids), len(masks.places)), mask)
    return decoder(
        input_ids=torch.cat((token_ids, behind), -1),
        position_ids=masks.positions[None].to(token_ids.device),
        attention_mask=masks.visible[None, None].to(token_ids.device),
        use_cache=False,
    ).last_hidden_state


def logits(model: PreTrainedModel, hidden: Tensor, vocab_size: int) -> Tensor:
    """[..., V] of what `states` gives, of the first `vocab_size` tokens."""
    head = model.get_output_embeddings()
    assert head is not None
    return head(hidden)[..., :vocab_size]


def save(model: PreTrainedModel, target: Path, folder: Path) -> None:
    """Writes the model in bfloat16, with the target's tokenizer."""
    model.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    model_folder.save(model, folder)
    for name in _TOKENIZER_FILES:
        if (target / name).is_file():
            shutil.copyfile(target / name, folder / name)
