"""Training: batches of the target's texts, the loss over text and masks, and the loop that can be stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from recipes.demo_pair.recipe import Precision
from recipes.demo_pair.training import (
    MAX_GRADIENT_NORM,
    PIECE_TOKENS,
    SHARPEST,
    load_checkpoint,
    muon,
    rate_factor,
    save_checkpoint,
)
from recipes.distill.draft import logits, states
from recipes.distill.loss import Costs, chain_weights, costs, length_weights
from recipes.distill.masks import Masks, dropped
from recipes.distill.options import Options
from recipes.distill.written import Text
from recipes.progress import Report

CHECKPOINT_STEPS = 20
"""Steps between two checkpoints: what is lost when a run is stopped."""


KEPT_BYTES_MAX = 4 << 30
"""Memory for what the target has made of texts: with a width of 4096 that of half a million tokens. Texts beyond that
are read anew in each pass."""


class Batch(NamedTuple):
    """The texts of one step, side by side."""

    token_ids: Tensor
    """[B, T]; behind a text's end anything."""
    lengths: Tensor
    """[B], the tokens of each."""
    temperatures: Tensor
    """[B], at which each was written and is learned."""
    places: Tensor
    """[B], which of the texts each is."""


def batch_of(texts: Sequence[Text], num_texts: int, step: int, seed: int) -> Batch:
    """The batch of a step. Each pass over all texts has an order of its own, by seed and pass alone: there is no state
    to save."""
    places: list[int] = []
    for index in range(step * num_texts, (step + 1) * num_texts):
        turn, place = divmod(index, len(texts))
        generator = torch.Generator().manual_seed(seed + turn)
        places.append(int(torch.randperm(len(texts), generator=generator)[place]))
    some = [texts[place] for place in places]
    return Batch(
        pad_sequence([torch.tensor(text.token_ids) for text in some], batch_first=True),
        torch.tensor([len(text.token_ids) for text in some]),
        torch.tensor([text.temperature for text in some]),
        torch.tensor(places),
    )


class Reader:
    """A target that reads texts: each alone, so that what it makes of one depends on no other, and once if it may."""

    def __init__(self, target: PreTrainedModel) -> None:
        self._target = target
        self._kept: dict[int, Tensor] = {}
        self._num_bytes = 0

    @torch.no_grad()
    def read(self, batch: Batch) -> Tensor:
        """What the target's head makes logits of, [B, T - 1, width]; behind a text's end zeros."""
        lengths = (batch.lengths - 1).tolist()
        texts = zip(batch.places.tolist(), batch.token_ids, lengths, strict=True)
        found = [self._states(place, token_ids[:length]) for place, token_ids, length in texts]
        missing = batch.token_ids.shape[1] - 1 - max(lengths)
        return functional.pad(pad_sequence(found, batch_first=True), (0, 0, 0, missing))

    def _states(self, place: int, token_ids: Tensor) -> Tensor:
        kept = self._kept.get(place)
        if kept is None:
            kept = states(self._target, token_ids[None])[0]
            if self._num_bytes + kept.nbytes <= KEPT_BYTES_MAX:
                self._kept[place] = kept.cpu()
                self._num_bytes += kept.nbytes
        return kept.to(token_ids.device)


class Objective:
    """The loss of a draft on a batch."""

    def __init__(self, target: PreTrainedModel, options: Options, vocab_size: int) -> None:
        """Distributions are those over the `vocab_size` tokens that both models have."""
        self._target = target
        self._reader = Reader(target)
        self._options = options
        self._vocab_size = vocab_size

    def __call__(self, draft: PreTrainedModel, batch: Batch, step: int) -> Tensor:
        """Mean cost of a guess: of the one a token allows, plus, with masks, of those that masks allow.

        What is dropped follows from seed and step alone.
        """
        options, inputs = self._options, batch.token_ids[:, :-1]
        num_tokens = inputs.shape[1]
        masks = None
        if options.parallel:
            generator = torch.Generator().manual_seed(options.seed * options.steps + step)
            masks = dropped(num_tokens, options.depths, options.keep, generator).to(inputs.device)
        wanted = self._reader.read(batch)  # [B, T, width]
        given = states(draft, inputs, masks)  # [B, T + N, width]
        ends = batch.lengths[:, None] - 1
        found = self._costs(draft, given[:, :num_tokens], wanted, batch.temperatures)
        valid = torch.arange(num_tokens, device=ends.device) < ends  # [B, T]
        weights = valid.float()
        if options.by_length:
            weights *= chain_weights(found.acceptance * valid, options.depths)
        loss = (found.divergence * weights).sum() / weights.sum()
        if masks is None or not len(masks.places):
            return loss
        of_masks = self._costs(draft, given[:, num_tokens:], wanted[:, masks.stands_for], batch.temperatures)
        valid = masks.stands_for < ends  # [B, N]
        weights = valid.float()
        if options.by_length:
            weights *= _mask_weights(masks, found.acceptance, of_masks.acceptance * valid, options.depths)
        return loss + (of_masks.divergence * weights).sum() / weights.sum()

    def _costs(self, draft: PreTrainedModel, given: Tensor, wanted: Tensor, temperatures: Tensor) -> Costs:
        """[B, P] each, of hidden states [B, P, width] of draft and target at the same places."""
        num_texts, num_places, _ = given.shape
        warmth = temperatures.clamp(min=SHARPEST).repeat_interleave(num_places)[:, None]  # [B * P, 1]
        pieces = zip(
            given.flatten(0, 1).split(PIECE_TOKENS),
            wanted.flatten(0, 1).split(PIECE_TOKENS),
            warmth.split(PIECE_TOKENS),
            strict=True,
        )
        found = [self._compared(draft, *piece) for piece in pieces]
        return Costs(*(torch.cat(parts).view(num_texts, num_places) for parts in zip(*found, strict=True)))

    def _compared(self, draft: PreTrainedModel, given: Tensor, wanted: Tensor, warmth: Tensor) -> Costs:
        with torch.no_grad():
            aim = self._log_probs(self._target, wanted, warmth)
        return costs(self._options.divergence, aim, self._log_probs(draft, given, warmth))

    def _log_probs(self, model: PreTrainedModel, hidden: Tensor, warmth: Tensor) -> Tensor:
        return (logits(model, hidden, self._vocab_size).float() / warmth).log_softmax(-1)  # [P, V]


def train(
    draft: PreTrainedModel,
    objective: Objective,
    texts: Sequence[Text],
    options: Options,
    learning_rate: float,
    checkpoint: Path,
    report: Report,
) -> None:
    """Trains the draft in place, from where `checkpoint` stands if it exists."""
    optimizers = muon(draft)
    step = load_checkpoint(checkpoint, draft, optimizers) if checkpoint.exists() else 0
    draft.train()
    while step < options.steps:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate * rate_factor(step, options.steps)
        batch = Batch(*(each.to(draft.device) for each in batch_of(texts, options.batch, step, options.seed)))
        with torch.autocast(draft.device.type, torch.bfloat16, enabled=options.precision is Precision.BFLOAT16):
            loss = objective(draft, batch, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(draft.parameters(), MAX_GRADIENT_NORM)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        if step % CHECKPOINT_STEPS == 0 or step == options.steps:
            save_checkpoint(checkpoint, draft, optimizers, step)
        report(step, options.steps, loss.item())
    draft.eval()


def _mask_weights(masks: Masks, of_text: Tensor, of_masks: Tensor, num_depths: int) -> Tensor:
    """What each mask's guess weighs, [B, N], of the acceptances at the text's tokens [B, T] and at masks [B, N].

    A chain begins with the guess at the token itself. Where masks are dropped or have no text, it ends.
    """
    table = of_text.new_zeros(*of_text.shape, num_depths)
    table[..., 0] = of_text
    table[:, masks.places, masks.depths] = of_masks
    return length_weights(table)[:, masks.places, masks.depths]
