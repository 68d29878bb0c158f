"""The measurement: each round of requests is put to both checkouts before the next; they take turns at first.

So do their processes: whichever starts first may have the worse memory for all of its life, so there are several lives.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from bench.against.options import AgainstOptions
from bench.compare.measuring import order
from bench.load.answer import Answer, read
from bench.load.client import LoadClient
from bench.load.loops import closed_loop
from bench.load.workload import ClosedWork, Shape, closed_work, requests

THIS, OTHER = "this", "other"
"""The two checkouts."""

PROMPT_TOKENS = 128
"""What the bundled prompts have."""

ROUNDS_MIN = 3
"""Fewest rounds that count: their differences tell how far figures can be trusted."""


class Round(NamedTuple):
    """The same requests put to both, each list in their order."""

    temperature: float
    this: Sequence[Answer]
    other: Sequence[Answer]


def num_rounds(options: AgainstOptions) -> int:
    """How many rounds count at each temperature, in one life of the services."""
    return max(ROUNDS_MIN, -(-options.num_prompts // (options.num_clients * options.num_lives)))


Works = Mapping[float, Iterator[ClosedWork]]
"""By temperature what is asked, round by round: no prompt twice."""


async def measure(
    clients: Mapping[str, LoadClient], works: Works, options: AgainstOptions, on_progress: Callable[[str], None]
) -> list[Round]:
    """The rounds of one life that count. `on_progress` is told what comes next.

    Raises the OutriderError of a failed answer.
    """
    rounds: list[Round] = []
    for number in range(options.warm_ups + num_rounds(options)):
        for temperature in options.temperatures:
            work = next(works[temperature])
            answers: dict[str, list[Answer]] = {}
            for name in order([THIS, OTHER], number):
                warming = "warming up: " if number < options.warm_ups else ""
                on_progress(f"{warming}round {number + 1}, temperature {temperature:g}, {name}")
                answers[name] = [read(recording) for recording in await closed_loop(clients[name].ask, work)]
                for answer in answers[name]:
                    if answer.error is not None:
                        raise answer.error
            if number >= options.warm_ups:
                rounds.append(Round(temperature, answers[THIS], answers[OTHER]))
    return rounds


def works(corpus: Sequence[Sequence[int]], options: AgainstOptions) -> Works:
    """What is asked in all lives."""
    return {temperature: _works(corpus, options, temperature) for temperature in options.temperatures}


def _works(corpus: Sequence[Sequence[int]], options: AgainstOptions, temperature: float) -> Iterator[ClosedWork]:
    shape = Shape(prompt_lengths=(PROMPT_TOKENS,), output_lengths=(options.max_tokens,), temperature=temperature)
    if options.num_clients > 1:
        return (closed_work(corpus, shape, options.num_clients, seed) for seed in itertools.count())
    return (ClosedWork([None], [request], []) for request in requests(corpus, shape, seed=0))
