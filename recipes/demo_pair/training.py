"""One training loop for both models, its two losses and optimizers, and its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedModel

from recipes.demo_pair.recipe import Precision, Recipe
from recipes.demo_pair.text import Batch, Text
from recipes.progress import Report

WARMUP_FRACTION = 0.03
"""Part of the steps in which the learning rate rises to its peak."""

FINAL_RATE_FRACTION = 0.03
"""Part of the peak learning rate that is left at the last step."""

WEIGHT_DECAY = 0.1
"""Decay of the matrices; gains do not decay, nor does an embedding beside matrices that Muon trains."""

BETAS = (0.9, 0.95)
"""How slowly AdamW forgets gradients and their squares."""

MAX_GRADIENT_NORM = 1.0
"""Longer gradients are shortened to this length."""

MISS_WEIGHT = 3.0
"""Nats of divergence that a missed guess weighs. The divergence alone takes care of the whole vocabulary, which a small
model pays for with its first guess; misses alone say nothing about the second and third."""

SHARPEST = 0.4
"""Lowest temperature at which a draft learns. At 0 a distribution is one token and there is no slope to follow; at this
one the greedy choice already has most of it."""

PIECE_TOKENS = 512
"""Tokens whose distributions are compared at once: tensors of 8 MiB with 4096 tokens in the vocabulary, which the
allocator keeps from step to step. A step of the draft takes a fifth less time than with those of a whole batch, which
it returns each time."""

LossFunction = Callable[[LlamaForCausalLM, Batch], Tensor]
"""The loss, in nats per token, of a model on a batch."""

Optimizers = Sequence[torch.optim.Optimizer]
"""Between them they have all of a model's parameters, each once. Whoever steps them sets their learning rates."""


def next_token_loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Mean cross-entropy of the true next tokens, at temperature 1 always."""
    return functional.cross_entropy(_logits(model, batch.windows), batch.windows[:, 1:].flatten())


def distillation_loss(teacher: LlamaForCausalLM) -> LossFunction:
    """What guessing with the model costs where the teacher chooses, in the mean over tokens, each at its temperature.

    That is the Kullback-Leibler divergence of the model's full next-token distribution from the teacher's, and
    MISS_WEIGHT times their total variation: the part of single guesses that misses under the best of couplings
    (Leviathan et al., arXiv 2211.17192; distilled directly by Zhou et al., arXiv 2310.08461).
    """

    def cost(model: LlamaForCausalLM, given: Tensor, wanted: Tensor, temperatures: Tensor) -> Tensor:
        with torch.no_grad():
            aim = (teacher.lm_head(wanted).float() / temperatures).log_softmax(-1)  # [P, V]
        guess = (model.lm_head(given).float() / temperatures).log_softmax(-1)  # [P, V]
        divergence = functional.kl_div(guess, aim, reduction="sum", log_target=True)
        return divergence + MISS_WEIGHT * (len(aim) - torch.minimum(guess, aim).exp().sum())

    def loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
        with torch.no_grad():
            wanted = _states(teacher, batch.windows)
        given = _states(model, batch.windows)
        num_tokens = batch.windows.shape[1] - 1
        temperatures = batch.temperatures.clamp(min=SHARPEST).repeat_interleave(num_tokens)[:, None]  # [B * T, 1]
        pieces = zip(*(each.split(PIECE_TOKENS) for each in (given, wanted, temperatures)), strict=True)
        return torch.stack([cost(model, *piece) for piece in pieces]).sum() / len(given)

    return loss


@torch.no_grad()
def adopt_embedding(model: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Gives `model` the principal components of the teacher's embedding to begin with, as spread out as its own was.

    If its width exceeds the teacher's, the rest stays as it was.
    """
    own = model.get_input_embeddings().get_parameter("weight")
    wanted = teacher.get_input_embeddings().get_parameter("weight").float()
    _, _, directions = torch.linalg.svd(wanted, full_matrices=False)  # [width of the teacher, width of the teacher]
    components = wanted @ directions[: own.shape[1]].T
    own[:, : components.shape[1]] = components * own.std() / components.std()


def adamw(model: LlamaForCausalLM) -> Optimizers:
    """AdamW for all of it."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    gains = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": gains, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, betas=BETAS)]


def muon(model: PreTrainedModel) -> Optimizers:
    """Muon for the layers' matrices, with steps as long as AdamW's at the same rate, and AdamW for the rest."""
    modules = model.get_input_embeddings(), model.get_output_embeddings()
    ends = {id(end.get_parameter("weight")) for end in modules if end is not None}
    matrices = [each for each in model.parameters() if each.ndim == 2 and id(each) not in ends]
    rest = [each for each in model.parameters() if each.ndim != 2 or id(each) in ends]
    return [
        torch.optim.Muon(matrices, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, weight_decay=0.0, betas=BETAS),
    ]


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
    optimizers: Optimizers,
    text: Text,
    recipe: Recipe,
    *,
    num_tokens: int,
    learning_rate: float,
    checkpoint: Path,
    report: Report,
) -> None:
    """Trains `model` in place on `num_tokens` tokens, or on what is left of them if `checkpoint` exists."""
    num_steps = max(1, num_tokens // recipe.batch_tokens)
    step = load_checkpoint(checkpoint, model, optimizers) if checkpoint.exists() else 0
    model.train()
    while step < num_steps:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate * rate_factor(step, num_steps)
        batch = Batch(*(tensor.to(model.device) for tensor in text.batch(step)))
        with torch.autocast(model.device.type, torch.bfloat16, enabled=recipe.precision is Precision.BFLOAT16):
            loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        if step % recipe.checkpoint_steps == 0:
            save_checkpoint(checkpoint, model, optimizers, step)
        report(step, num_steps, loss.item())


def save_checkpoint(path: Path, model: PreTrainedModel, optimizers: Optimizers, step: int) -> None:
    """Writes weights, optimizer state and step into one safetensors file, which takes the place of `path` at once."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight/{name}"] = parameter.detach()
        for state in (optimizer.state[parameter] for optimizer in optimizers if parameter in optimizer.state):
            tensors.update({f"{key}/{name}": value for key, value in state.items()})
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata={"step": str(step)})
    unfinished.replace(path)


def load_checkpoint(path: Path, model: PreTrainedModel, optimizers: Optimizers) -> int:
    """Restores what `save_checkpoint` wrote and returns the number of steps done."""
    parameters = dict(model.named_parameters())
    states = {
        parameter: optimizer.state[parameter]
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    with safe_open(path, "pt") as file, torch.no_grad():
        for entry in file.keys():  # noqa: SIM118 (not a mapping)
            key, name = entry.split("/")
            value = file.get_tensor(entry)
            if key == "weight":
                parameters[name].copy_(value)
            else:
                # AdamW keeps its count of steps, the one value without a shape, on the CPU.
                states[parameters[name]][key] = value.to(model.device) if value.ndim else value
        return int(file.metadata()["step"])


def _logits(model: LlamaForCausalLM, windows: Tensor) -> Tensor:
    """Logits for all but the last token of each window, [B * T, V] float32."""
    return model(input_ids=windows[:, :-1], use_cache=False).logits.flatten(0, 1).float()


def _states(model: LlamaForCausalLM, windows: Tensor) -> Tensor:
    """What the head makes logits of, for all but the last token of each window, [B * T, width]."""
    return model.model(input_ids=windows[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)
