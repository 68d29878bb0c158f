"""What heads learn: the target's distributions on text that it wrote, from many places at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from recipes.demo_pair.training import BETAS, MAX_GRADIENT_NORM, SHARPEST, rate_factor
from recipes.distill.draft import logits
from recipes.distill.loss import costs
from recipes.distill.options import Loss
from recipes.distill.training import Batch, Reader, batch_of
from recipes.distill.written import Text
from recipes.progress import Report
from recipes.recurrent_head.head import Heads, embeddings, unrolled

LEARNING_RATE = 2e-3

NUM_TEXTS = 8
"""Texts of a step."""

NUM_STARTS = 96
"""Places of these texts from which a step's heads go on: with four levels each, about as many rows as PIECE_TOKENS."""


class Lesson(NamedTuple):
    """What heads learn in one step, from N places over D levels."""

    hidden: Tensor
    """[N, width of the draft model]"""
    embedded: Tensor
    """[N, D, width of the draft model]"""
    wanted: Tensor
    """[N, D, width of the target]: the target's hidden states where each level guesses."""
    warmth: Tensor
    """[N, 1, 1], the temperatures at which it is learned."""


class Lessons:
    """The lessons of texts that the target wrote."""

    def __init__(self, draft: PreTrainedModel, target: PreTrainedModel, texts: Sequence[Text], num_levels: int) -> None:
        self._draft, self._texts = draft, texts
        self._readers = Reader(draft), Reader(target)
        self._num_levels = num_levels

    @torch.no_grad()
    def at(self, step: int) -> Lesson:
        """Of that step. What it is made of follows from the step alone."""
        batch = batch_of(self._texts, NUM_TEXTS, step, seed=0)
        hidden, wanted = (reader.read(batch) for reader in self._readers)  # [B, T, width] each
        texts, places = starts(batch, self._num_levels, step)
        ahead = places[:, None] + torch.arange(1, self._num_levels + 1)  # [N, D]
        return Lesson(
            hidden[texts, places],
            embeddings(self._draft, batch.token_ids[texts[:, None], ahead]),
            wanted[texts[:, None], ahead],
            batch.temperatures[texts, None, None].clamp(min=SHARPEST),
        )


def starts(batch: Batch, num_levels: int, step: int) -> tuple[Tensor, Tensor]:
    """Texts and places, [N] each, behind which the text has a token for each level to guess."""
    places = torch.arange(batch.token_ids.shape[1])
    texts, found = (places + num_levels + 1 < batch.lengths[:, None]).nonzero().unbind(-1)
    some = torch.randperm(len(texts), generator=torch.Generator().manual_seed(step))[:NUM_STARTS]
    return texts[some], found[some]


def train(
    heads: Heads, draft: PreTrainedModel, target: PreTrainedModel, lessons: Lessons, num_steps: int, report: Report
) -> None:
    """Trains the heads side by side, each by itself; the draft model stays as it is. Reports the last one's loss."""
    optimizer = torch.optim.AdamW([each for head in heads.values() for each in head.parameters()], betas=BETAS)
    vocab_size = target.config.get_text_config().vocab_size
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate_factor(step, num_steps)
        lesson, cost = lessons.at(step), 0.0
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            aim = (logits(target, lesson.wanted, vocab_size).float() / lesson.warmth).log_softmax(-1).flatten(0, 1)
        for head in heads.values():
            with torch.autocast("cpu", torch.bfloat16):
                found = logits(draft, unrolled(head, lesson.hidden, lesson.embedded), vocab_size)
            guess = (found.float() / lesson.warmth).log_softmax(-1).flatten(0, 1)
            loss = costs(Loss.FORWARD_KL_AND_MISSES, aim, guess).divergence.mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), MAX_GRADIENT_NORM)
            cost = loss.item()
        optimizer.step()
        optimizer.zero_grad()
        report(step + 1, num_steps, cost)
