"""Completions of one coordinator with production's gate, and steps that take as long as the load is told to take."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from outrider.core.estimate.speculation_gate import SpeculationGate

STEP_SECONDS = 0.002
STEP_SECONDS_PER_COMPLETION = 0.0004
"""Of a step by the target alone."""

ANSWER_TOKENS = (32, 64)
"""One of these, by chance."""

NOISE = 0.15
"""A step, which all completions share, takes longer or shorter by about this part."""

PROMPT_STEPS = 1.0
"""A step reads one prompt at most, and takes longer by so many steps of the target alone."""

CATCHING_UP_ROUNDS = 3
CATCHING_UP_STRETCH = 1.1
"""A completion that begins to speculate has so many rounds without guesses, and all steps take so many times as long as
by the target alone, while its drafter reads."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A target and a draft on some text."""

    tokens_per_round: float
    """With speculation, in the mean; geometrically distributed."""
    gains: Mapping[int, float]
    """How many times the tokens per second are with speculation, by number of completions; between them the logarithm
    is on a line, and beyond them as at the nearest."""

    def gain(self, num_running: int) -> float:
        """With so many completions."""
        known = sorted(self.gains)
        lower = max((each for each in known if each <= num_running), default=known[0])
        upper = min((each for each in known if each >= num_running), default=known[-1])
        place = math.log(num_running / lower) / math.log(upper / lower) if upper > lower else 0.0
        return self.gains[lower] ** (1.0 - place) * self.gains[upper] ** place


@dataclass(slots=True, eq=False)
class _Completion:
    left: int
    """Tokens of its answer that are to come."""
    last_at: float | None = None
    """None: it waits for its first token."""
    num_rounds_open: int = 0
    """Since it began to speculate."""


@dataclass(slots=True)
class World:
    """Goes on from load to load."""

    pair: Pair
    rng: random.Random
    gate: SpeculationGate
    way: bool | None = None
    """Speculates or does not, whatever the gate says."""
    greedy: bool = False
    now: float = 0.0
    num_tokens: int = 0
    num_tokens_open: int = 0
    """Those that came while it speculated."""
    _running: list[_Completion] = field(default_factory=list[_Completion])

    @property
    def num_running(self) -> int:
        """Completions that were asked for and are not over."""
        return len(self._running)

    @property
    def is_open(self) -> bool:
        """Whether completions speculate at present."""
        return self.gate.is_open if self.way is None else self.way

    def ask(self, num_clients: int) -> None:
        """So many clients ask for an answer."""
        for _ in range(num_clients):
            self.gate.begin(greedy=self.greedy)
            self._running.append(_Completion(self.rng.choice(ANSWER_TOKENS)))

    def last(self, num_clients: int, marks: Iterable[int]) -> list[float]:
        """So many clients ask again when they are answered, until the last of `marks`, in tokens; then all leave.
        Seconds to each mark."""
        began, first = self.now, self.num_tokens
        self.ask(num_clients)
        times: list[float] = []
        for mark in marks:
            while self.num_tokens < first + mark:
                self.ask(num_clients - self.num_running)
                self._step()
            times.append(self.now - began)
        for each in self._running:
            self.gate.end(greedy=self.greedy, has_started=each.last_at is not None)
        self._running.clear()
        return times

    def block(self, num_clients: int) -> float:
        """So many clients ask once. Seconds until all are answered."""
        began = self.now
        self.ask(num_clients)
        while self._running:
            self._step()
        return self.now - began

    def _step(self) -> None:
        decoding = [each for each in self._running if each.last_at is not None]
        reading = next((each for each in self._running if each.last_at is None), None)
        stretch = PROMPT_STEPS if reading else 0.0
        is_open = self.is_open
        if is_open and decoding:
            ready = sum(each.num_rounds_open >= CATCHING_UP_ROUNDS for each in decoding) / len(decoding)
            full = self.pair.tokens_per_round / self.pair.gain(self.num_running)
            stretch += full * ready + CATCHING_UP_STRETCH * (1.0 - ready)
        else:
            stretch += 1.0
        seconds = STEP_SECONDS + STEP_SECONDS_PER_COMPLETION * self.num_running
        seconds *= stretch * self.rng.lognormvariate(-(NOISE**2) / 2.0, NOISE)
        self.now += seconds
        for each in decoding:
            num_tokens = self._round(each, is_open=is_open)
            self._count(each, num_tokens, is_open=is_open)
        if reading:
            self._count(reading, 1, is_open=is_open)

    def _round(self, completion: _Completion, *, is_open: bool) -> int:
        is_ready = completion.num_rounds_open >= CATCHING_UP_ROUNDS
        completion.num_rounds_open = completion.num_rounds_open + 1 if is_open else 0
        num_tokens = 1
        while is_open and is_ready and self.rng.random() > 1.0 / self.pair.tokens_per_round:
            num_tokens += 1
        return num_tokens

    def _count(self, completion: _Completion, num_tokens: int, *, is_open: bool) -> None:
        num_tokens = min(num_tokens, completion.left)
        self.num_tokens += num_tokens
        self.num_tokens_open += num_tokens * is_open
        completion.left -= num_tokens
        if completion.last_at is None:
            self.gate.start()
        else:
            self.gate.observe(num_tokens, self.now - completion.last_at)
        completion.last_at = self.now
        if not completion.left:
            self.gate.end(greedy=self.greedy)
            self._running.remove(completion)
