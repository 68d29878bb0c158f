"""Penalties for what the line already holds: repetition (Keskar et al. 2019, CTRL), frequency and presence (OpenAI)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.sample.processor import Row
from outrider.engine.transfer import tensor_on


class Penalties:
    """A `LogitsProcessor`: the repetition penalty counts prompt and output, the others the output alone."""

    def __init__(self, vocab_size: int, max_sessions: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        # Rows: repetition, frequency and presence penalty.
        self._penalties = torch.zeros(3, max_sessions, dtype=torch.float32, device=device)
        self._token_counts: dict[int, tuple[Tensor, Tensor]] = {}
        """Of each session which tokens the prompt holds (bool) and how often the output holds each (int32), [V] each:
        five bytes a token id, so only those that are penalized have it."""

    def open(
        self, slot: int, params: SamplingParams, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]
    ) -> bool:
        """See `LogitsProcessor`."""
        if not params.penalized:
            return False
        penalties = [params.repetition_penalty, params.frequency_penalty, params.presence_penalty]
        self._penalties[:, slot] = tensor_on(self._device, penalties, torch.float32)
        prompt_seen = torch.zeros(self._vocab_size, dtype=torch.bool, device=self._device)
        prompt_seen[tensor_on(self._device, prompt_token_ids, torch.int64)] = True
        output_counts = torch.zeros(self._vocab_size, dtype=torch.int32, device=self._device)
        self._token_counts[slot] = prompt_seen, output_counts
        if output_token_ids:
            self.commit(slot, output_token_ids)
        return True

    def commit(self, slot: int, token_ids: Sequence[int]) -> None:
        """See `LogitsProcessor`."""
        _, output_counts = self._token_counts[slot]
        committed = tensor_on(self._device, token_ids, torch.int64)
        output_counts.index_add_(0, committed, torch.ones_like(committed, dtype=output_counts.dtype))

    def close(self, slot: int) -> None:
        """See `LogitsProcessor`."""
        self._token_counts.pop(slot, None)

    def process(self, logits: Tensor, indices: Sequence[int], rows: Sequence[Row]) -> None:
        """See `LogitsProcessor`. P of the rows are penalized."""
        which = tensor_on(self._device, indices, torch.int64)
        slots = tensor_on(self._device, [row.slot for row in rows], torch.int64)
        logits[which] = self._penalized(logits[which], slots, rows)

    def _penalized(self, logits: Tensor, slots: Tensor, rows: Sequence[Row]) -> Tensor:
        """[P, V] from [P, V]."""
        held = [self._token_counts[row.slot] for row in rows]
        in_prompt, counts = (torch.stack(each) for each in zip(*held, strict=True))  # [P, V] each
        path_tokens = [(index, token_id) for index, row in enumerate(rows) for token_id in row.path]
        if path_tokens:
            index, token_ids = tensor_on(self._device, path_tokens, torch.int64).T
            counts.index_put_((index, token_ids), torch.ones_like(index, dtype=counts.dtype), accumulate=True)
        in_output = counts > 0
        repetition, frequency, presence = self._penalties[:, slots, None]  # [P, 1] each
        repeated = torch.where(logits < 0, logits * repetition, logits / repetition)
        logits = torch.where(in_prompt | in_output, repeated, logits)
        return logits - frequency * counts - presence * in_output
