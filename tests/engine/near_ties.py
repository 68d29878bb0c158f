"""Choices between two almost equally likely tokens: where a difference in the last bits of logits would show.

`python -m tests.engine.near_ties SECONDS` searches the bundled target for more of them and writes them to FILE.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from outrider.engine.sample.noise import gumbel

FILE = Path(__file__).parent / "golden" / "near_ties.txt"
"""A line for each: its position in the text, its seed."""

MODEL = Path(__file__).parents[2] / "models" / "target"

TEXT = '''import os


def walk(path):
    """Yields the names of all files below a path, the folders' before the files'."""
    for name in sorted(os.listdir(path)):
        full = os.path.join(path, name)
        if os.path.isdir(full):
            yield from walk(full)
        else:
            yield full


class Counter:
    def __init__(self, values=()):
        self.counts = {}
        for value in values:
            self.add(value)

    def add(self, value, count=1):
        self.counts[value] = self.counts.get(value, 0) + count

    def most_common(self, number=None):
        pairs = sorted(self.counts.items(), key=lambda pair: pair[1], reverse=True)
        return pairs[:number]
'''

TEMPERATURE = 0.8
MARGIN = 1e-5
"""Between the best and the second perturbed score."""

_NUM_ROWS = 24
"""Rows that are searched: those whose next token is least certain, as near-ties are most frequent there."""
_NUM_TOKENS = 8
"""Most likely tokens of a row between which the search looks for them; whoever reads them compares with all."""
_SEEDS_AT_ONCE = 2048


class NearTie(NamedTuple):
    """A choice after the token before `position` of TEXT."""

    position: int
    seed: int
    temperature: float = TEMPERATURE


def line() -> list[int]:
    """TEXT as the bundled target reads it."""
    return Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(TEXT).ids


def recorded() -> list[NearTie]:
    """Those of FILE."""
    return [NearTie(*map(int, each.split())) for each in FILE.read_text().splitlines()]


def perturbed(logits: Tensor, ties: list[NearTie]) -> Tensor:
    """The scores [T, V] whose largest is chosen in each tie; row i of `logits` [N, V] decides position i + 1."""
    positions, seeds, temperatures = zip(*ties, strict=True)
    noise = gumbel(torch.tensor(seeds), torch.tensor(positions), logits.shape[-1])
    rows = logits[torch.tensor(positions) - 1].double()
    return rows / torch.tensor(temperatures, dtype=torch.float64)[:, None] + noise


def found(logits: Tensor, seeds: Tensor) -> list[NearTie]:
    """Near-ties of these seeds among the least certain rows of `logits` [N, V]."""
    scores, token_ids = (logits.double() / TEMPERATURE).topk(_NUM_TOKENS)
    rows = torch.distributions.Categorical(logits=scores).entropy().topk(_NUM_ROWS).indices
    ties: list[NearTie] = []
    for row in rows.tolist():
        positions = torch.full_like(seeds, row + 1)
        noise = gumbel(seeds, positions, logits.shape[-1], token_ids[row].expand(len(seeds), -1))
        best = (scores[row] + noise).topk(2).values
        close = (best[:, 0] - best[:, 1] < MARGIN).nonzero()[:, 0]
        ties += [NearTie(row + 1, seed) for seed in seeds[close].tolist()]
    return _near(logits, ties)


def made(logits: Tensor, num_seeds: int) -> list[NearTie]:
    """Near-ties of all rows of `logits` [N, V]: with most seeds there is a temperature at which the two best scores
    meet."""
    positions = torch.arange(1, len(logits) + 1).repeat_interleave(num_seeds)
    seeds = torch.arange(num_seeds).repeat(len(logits))
    rows, noise = logits[positions - 1].double(), gumbel(seeds, positions, logits.shape[-1])
    best = (rows / TEMPERATURE + noise).topk(2).indices
    temperatures = rows.gather(1, best).diff()[:, 0] / noise.gather(1, best).diff().neg()[:, 0]
    columns = (positions.tolist(), seeds.tolist(), temperatures.tolist())
    return _near(logits, [NearTie(*each) for each in zip(*columns, strict=True) if 0.1 < each[2] < 10.0])


def _near(logits: Tensor, ties: list[NearTie]) -> list[NearTie]:
    """Those of which it is true."""
    if not ties:
        return []
    best = perturbed(logits, ties).topk(2).values
    return [tie for tie, (first, second) in zip(ties, best.tolist(), strict=True) if first - second < MARGIN]


def _search(seconds: float) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([line()])).logits[0]
    ties: list[NearTie] = []
    first, started = 0, time.monotonic()
    while time.monotonic() - started < seconds:
        ties += found(logits, torch.arange(first, first + _SEEDS_AT_ONCE))
        first += _SEEDS_AT_ONCE
    FILE.write_text("".join(f"{tie.position} {tie.seed}\n" for tie in sorted(ties)))
    print(f"{len(ties)} near-ties among {first} seeds")


if __name__ == "__main__":
    _search(float(sys.argv[1]))
