"""One training loop for both models, its two losses, and its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from recipes.demo_pair.recipe import Precision, Recipe
from recipes.demo_pair.text import Text

WARMUP_FRACTION = 0.03
"""Part of the steps in which the learning rate rises to its peak."""

FINAL_RATE_FRACTION = 0.1
"""Part of the peak learning rate that is left at the last step."""

WEIGHT_DECAY = 0.1
"""Decay of the matrices; gains do not decay."""

MAX_GRADIENT_NORM = 1.0
"""Longer gradients are shortened to this length."""

PIECE_TOKENS = 512
"""Tokens whose distributions are compared at once: tensors of 8 MiB with 4096 tokens in the vocabulary, which the
allocator keeps from step to step. A step of the draft takes a fifth less time than with those of a whole batch, which
it returns each time."""

LossFunction = Callable[[LlamaForCausalLM, Tensor], Tensor]
"""The loss, in nats per token, of a model on a batch of windows, [B, T + 1] token ids."""

Report = Callable[[int, int, float | None], None]
"""Called after each step with the steps done, the steps in all, and the step's loss, if it trained anything."""


def next_token_loss(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
    """Mean cross-entropy of the true next tokens."""
    return functional.cross_entropy(_logits(model, batch), batch[:, 1:].flatten())


def distillation_loss(teacher: LlamaForCausalLM) -> LossFunction:
    """Mean Kullback-Leibler divergence of the model's full next-token distribution from the teacher's."""

    def divergence(model: LlamaForCausalLM, given: Tensor, wanted: Tensor) -> Tensor:
        with torch.no_grad():
            aim = teacher.lm_head(wanted).float().log_softmax(-1)
        return functional.kl_div(model.lm_head(given).float().log_softmax(-1), aim, reduction="sum", log_target=True)

    def loss(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = _states(teacher, batch)
        given = _states(model, batch)
        pieces = zip(given.split(PIECE_TOKENS), wanted.split(PIECE_TOKENS), strict=True)
        return torch.stack([divergence(model, *piece) for piece in pieces]).sum() / len(given)

    return loss


@torch.no_grad()
def adopt_embedding(model: LlamaForCausalLM, teacher: LlamaForCausalLM) -> None:
    """Gives `model` the principal components of the teacher's embedding to begin with, as spread out as its own was.

    If its width exceeds the teacher's, the rest stays as it was.
    """
    own = model.model.embed_tokens.weight
    wanted = teacher.model.embed_tokens.weight.float()
    _, _, directions = torch.linalg.svd(wanted, full_matrices=False)  # [width of the teacher, width of the teacher]
    components = wanted @ directions[: own.shape[1]].T
    own[:, : components.shape[1]] = components * own.std() / components.std()


def rate_factor(step: int, num_steps: int) -> float:
    """Part of the peak learning rate at `step`: a linear rise, then half a cosine wave down."""
    num_warmup_steps = max(1, round(num_steps * WARMUP_FRACTION))
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    progress = (step - num_warmup_steps) / (num_steps - num_warmup_steps)
    return FINAL_RATE_FRACTION + (1 - FINAL_RATE_FRACTION) * (1 + math.cos(math.pi * progress)) / 2


def train(
    model: LlamaForCausalLM,
    loss_of: LossFunction,
    text: Text,
    recipe: Recipe,
    *,
    num_tokens: int,
    learning_rate: float,
    checkpoint: Path,
    report: Report,
) -> None:
    """Trains `model` in place on `num_tokens` tokens, or on what is left of them if `checkpoint` exists."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    gains = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    num_steps = max(1, num_tokens // recipe.batch_tokens)
    step = load_checkpoint(checkpoint, model, optimizer) if checkpoint.exists() else 0
    model.train()
    while step < num_steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate_factor(step, num_steps)
        batch = text.batch(step).to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=recipe.precision is Precision.BFLOAT16):
            loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % recipe.checkpoint_steps == 0:
            save_checkpoint(checkpoint, model, optimizer, step)
        report(step, num_steps, loss.item())


def save_checkpoint(path: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Writes weights, optimizer state and step into one safetensors file, which takes the place of `path` at once."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight/{name}"] = parameter.detach()
        tensors.update({f"{key}/{name}": value for key, value in optimizer.state[parameter].items()})
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata={"step": str(step)})
    unfinished.replace(path)


def load_checkpoint(path: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    """Restores what `save_checkpoint` wrote and returns the number of steps done."""
    parameters = dict(model.named_parameters())
    with safe_open(path, "pt") as file, torch.no_grad():
        for entry in file.keys():  # noqa: SIM118 (not a mapping)
            key, name = entry.split("/")
            value = file.get_tensor(entry)
            if key == "weight":
                parameters[name].copy_(value)
            else:
                # AdamW keeps its count of steps, the one value without a shape, on the CPU.
                optimizer.state[parameters[name]][key] = value.to(model.device) if value.ndim else value
        return int(file.metadata()["step"])


def _logits(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
    """Logits for all but the last token of each window, [B * T, V] float32."""
    return model(input_ids=batch[:, :-1], use_cache=False).logits.flatten(0, 1).float()


def _states(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
    """What the head makes logits of, for all but the last token of each window, [B * T, width]."""
    return model.model(input_ids=batch[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)
