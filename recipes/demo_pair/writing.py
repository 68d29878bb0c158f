"""Text that the target itself writes: what a draft has to predict at run time.

A draft distilled on true text alone meets another kind of text at run time. So part of what it learns from is written
by the target (Zhou et al., DistillSpec, arXiv 2310.08461): once and beforehand, as the target does not change.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

TEMPERATURES = (0.0, 0.8, 1.0)
"""What requests ask for: greedy, a common default, the model's own distribution."""

LESSONS = (0.0, 0.8, 1.0, 0.8, 1.0)
"""Temperatures at which a draft's batches are written and learned, by turns: fewest greedily, as such text repeats
itself."""

SOURCE_LESSONS = (0.8, 1.0)
"""Temperatures at which a draft learns windows of source, by turns."""

MIN_PROMPT_TOKENS = 64
MAX_PROMPT_TOKENS = 128
"""True text in front of what is written, the end-of-text token before it included; the prompts of the benchmarks are
as long. One length for each batch, so that none of it is padded."""


class Written(NamedTuple):
    """Windows of text, of which all but the beginnings was written by a model."""

    token_ids: Tensor
    """[M, T] int32."""
    num_given: int
    """Tokens of each beginning, the end-of-text token in front included."""


def lesson(index: int) -> float:
    """The temperature of the batch of that index."""
    return LESSONS[index % len(LESSONS)]


@torch.inference_mode()
def write(
    target: LlamaForCausalLM, token_ids: Tensor, temperature: float, num_windows: int, num_tokens: int, seed: int
) -> Written:
    """Continues beginnings cut from `token_ids` ([N], N >= num_tokens) at places that `seed` decides.

    The windows have `num_tokens` tokens, beginnings included. The end of a document does not end them.
    """
    torch.manual_seed(seed)
    longest = min(MAX_PROMPT_TOKENS, num_tokens - 1)
    num_given = int(torch.randint(min(MIN_PROMPT_TOKENS, longest), longest + 1, ()))
    starts = torch.randint(len(token_ids) - num_given, (num_windows, 1))
    prompts = token_ids[starts + torch.arange(num_given)].long()
    prompts[:, 0] = 0  # the token that the tokenizer puts in front of a prompt
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    windows = target.generate(  # pyright: ignore[reportAttributeAccessIssue]
        prompts.to(target.device),
        max_new_tokens=num_tokens - num_given,
        eos_token_id=None,
        pad_token_id=0,
        cache_implementation="static",
        disable_compile=True,
        **sampling,
    )
    return Written(windows.int().cpu(), num_given)
