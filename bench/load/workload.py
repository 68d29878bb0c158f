"""What is asked: requests drawn by a seed, the same for every mode, and when they come."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from outrider.client import SamplingParams


class Request(NamedTuple):
    """One request, end-of-text or not."""

    token_ids: Sequence[int]
    max_tokens: int
    sampling: SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What requests look like."""

    prompt_lengths: Sequence[int]
    """In tokens; each as likely as the others."""
    output_lengths: Sequence[int]
    """The same of the answers."""
    temperature: float


class ClosedWork(NamedTuple):
    """What clients ask that ask again when answered.

    They begin one after another rather than all at once, as each first has an answer of another length to wait for; and
    when nothing is left that counts, they go on with what does not, so that whatever counts had the full load around
    it.
    """

    lead_in: Sequence[Request | None]
    """For each client what it asks first, if anything."""
    measured: Sequence[Request]
    fillers: Sequence[Request]
    """What clients ask after that, again and again."""


class OpenWork(NamedTuple):
    """What comes by itself."""

    arrivals: Sequence[float]
    """For each request the seconds after the beginning at which it is sent, in order."""
    measured: Sequence[Request]


MEASURED_MIN = 4
"""Fewest requests of a closed loop's pass that count: a single client asks one after another, and makes its time
with them."""

ROUNDS_BESIDE_LONG = 6
"""How often each client of a closed loop asks where passes with and without a long prompt are compared: they should
last as long as a few such prompts."""


def requests(corpus: Sequence[Sequence[int]], shape: Shape, seed: int) -> Iterator[Request]:
    """Requests without end. Prompts are beginnings of texts of `corpus`, and none is repeated before all were asked;
    one that is longer than its text goes on with the next texts."""
    rng = random.Random(seed)
    order: list[int] = []
    while True:
        order = order or rng.sample(range(len(corpus)), len(corpus))
        yield Request(
            token_ids=_prompt(corpus, order.pop(), rng.choice(shape.prompt_lengths)),
            max_tokens=rng.choice(shape.output_lengths),
            sampling=SamplingParams(temperature=shape.temperature, seed=rng.getrandbits(64)),
        )


def _prompt(corpus: Sequence[Sequence[int]], first: int, length: int) -> list[int]:
    token_ids: list[int] = []
    while len(token_ids) < length:
        token_ids += corpus[first % len(corpus)]
        first += 1
    return token_ids[:length]


def closed_work(
    corpus: Sequence[Sequence[int]], shape: Shape, num_clients: int, seed: int, num_rounds: int = 1
) -> ClosedWork:
    """One pass of `num_clients` clients, with `num_rounds` requests that count for each."""
    drawn = requests(corpus, shape, seed)
    lead_in: list[Request | None] = []
    for client in range(num_clients):
        request = next(drawn)
        num_tokens = request.max_tokens * client // num_clients
        lead_in.append(request._replace(max_tokens=num_tokens) if num_tokens else None)
    return ClosedWork(
        lead_in=lead_in,
        measured=[next(drawn) for _ in range(max(num_clients * num_rounds, MEASURED_MIN))],
        fillers=[next(drawn) for _ in range(num_clients)],
    )


def open_work(corpus: Sequence[Sequence[int]], shape: Shape, rate: float, seconds: float, seed: int) -> OpenWork:
    """One pass of `rate` requests per second, by a Poisson process: `rate * seconds` of them, one at least."""
    drawn = requests(corpus, shape, seed)
    rng = random.Random(seed)
    arrivals: list[float] = []
    now = 0.0
    for _ in range(max(1, round(rate * seconds))):
        arrivals.append(now)
        now += rng.expovariate(rate)
    return OpenWork(arrivals, [next(drawn) for _ in arrivals])
