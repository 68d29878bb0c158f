"""How often the draft's guesses hold the target's token: a property of the pair and the text, not of a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.validation import TREE_WIDTH_MAX
from outrider.engine.sample.sampler import Row, Sampler

_CPU = torch.device("cpu")


def coverage(
    draft: Path, dtype: str, lines: Sequence[tuple[Sequence[int], Sequence[int]]], temperature: float
) -> list[float]:
    """At index w - 1: the share of places where the target's token was among the draft's first w guesses.

    `lines` are prompts with the target's answers, the i-th drawn with seed i as `measure` does. The draft reads each
    line as it stands, so that every place counts once, and proposes by the rule of production (arXiv 2408.07978: with
    the target's own noise). The first figure is the literature's alpha, that of w guesses its alpha' for trees.
    """
    make: Any = transformers.AutoModelForCausalLM
    model = make.from_pretrained(draft, dtype=getattr(torch, dtype), local_files_only=True).eval()
    num_covered = [0] * TREE_WIDTH_MAX
    num_places = 0
    for seed, (prompt, answer) in enumerate(lines):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        sampler = Sampler(logits.shape[-1], 1, _CPU)
        sampler.open(0, SamplingParams(temperature=temperature, seed=seed), list(prompt), [])
        rows = [Row(0, len(prompt) + index) for index in range(len(answer))]
        guesses, _ = sampler.propose(logits, rows, TREE_WIDTH_MAX)
        for token_id, ranked in zip(answer, guesses, strict=True):
            num_places += 1
            if token_id in ranked:
                for width in range(ranked.index(token_id), TREE_WIDTH_MAX):
                    num_covered[width] += 1
    return [count / num_places for count in num_covered]
