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
from recipes.demo_pair.text import Windows

WARMUP_FRACTION = 0.03
"""Part of the steps in which the learning rate rises to its peak."""

FINAL_RATE_FRACTION = 0.1
"""Part of the peak learning rate that is left at the last step."""

WEIGHT_DECAY = 0.1
"""Decay of the matrices; gains do not decay."""

MAX_GRADIENT_NORM = 1.0
"""Longer gradients are shortened to this length."""

LossFunction = Callable[[LlamaForCausalLM, Tensor], Tensor]
"""The loss, in nats per token, of a model on a batch of windows, [B, T + 1] token ids."""

Report = Callable[[int, int, float], None]
"""Called after each step with the steps done, the steps in all, and the step's loss."""


def next_token_loss(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
    """Mean cross-entropy of the true next tokens."""
    return functional.cross_entropy(_logits(model, batch), batch[:, 1:].flatten())


def distillation_loss(teacher: LlamaForCausalLM) -> LossFunction:
    """Mean Kullback-Leibler divergence of the model's full next-token distribution from the teacher's."""

    def loss(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = _logits(teacher, batch).log_softmax(-1)
        given = _logits(model, batch).log_softmax(-1)
        return functional.kl_div(given, wanted, reduction="batchmean", log_target=True)

    return loss


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
    windows: Windows,
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
    num_steps = max(1, num_tokens // (recipe.batch_windows * recipe.window_tokens))
    step = load_checkpoint(checkpoint, model, optimizer) if checkpoint.exists() else 0
    model.train()
    while step < num_steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate_factor(step, num_steps)
        batch = windows.batch(step, recipe.batch_windows).to(model.device)
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
