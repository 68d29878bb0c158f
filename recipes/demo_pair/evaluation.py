"""What a pair reaches on text that it was not trained on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM


class Figures(NamedTuple):
    """A pair on held-out text, teacher-forced: each token is predicted from the true ones before it."""

    num_tokens: int
    target_loss: float
    """Nats per token."""
    draft_loss: float
    """Nats per token."""
    greedy_agreement: float
    """Part of the positions at which both models find the same token most likely."""
    top3_agreement: float
    """Part of the positions at which the target's most likely token is among the draft's three."""


@torch.inference_mode()
def evaluate(target: LlamaForCausalLM, draft: LlamaForCausalLM, token_ids: Tensor, window_tokens: int) -> Figures:
    """Runs both models over `token_ids` ([N], at least two), cut into windows of `window_tokens`."""
    totals = torch.zeros(4, dtype=torch.float64)
    num_tokens = len(token_ids) - 1
    for start in range(0, num_tokens, window_tokens):
        window = token_ids[start : start + window_tokens + 1].long()
        true = window[1:]  # [T]
        by_target = target(input_ids=window[None, :-1].to(target.device)).logits[0].float().cpu()  # [T, V]
        by_draft = draft(input_ids=window[None, :-1].to(draft.device)).logits[0].float().cpu()  # [T, V]
        best = by_target.argmax(-1)[:, None]  # [T, 1]
        guesses = by_draft.topk(3).indices  # [T, 3]
        totals += torch.stack(
            [
                functional.cross_entropy(by_target, true, reduction="sum"),
                functional.cross_entropy(by_draft, true, reduction="sum"),
                (guesses[:, :1] == best).sum(),
                (guesses == best).sum(),
            ]
        )
    return Figures(num_tokens, *(totals / num_tokens).tolist())
