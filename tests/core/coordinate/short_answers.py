"""A pool on a virtual clock: clients that ask again when answered, whose prompts are read beside the others' tokens."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from outrider.core.coordinate.speculation_gate import SpeculationGate

PROMPT_LENGTHS = (32, 64, 128)
ANSWER_LENGTHS = (32, 64)
READ_MS = 0.3
"""For each token of a prompt. A step reads as many as make it twice as long, as `STEP_STRETCH_MAX` has it."""


PAUSE_SECONDS = 5.0
"""Between two blocks."""


class Pace(NamedTuple):
    """What speculation makes of a load."""

    tokens_mean: float
    """Of a round."""
    gain: float
    """By how much it raises the tokens per second of a step that reads no prompts."""


class Answer:
    """One that is under way."""

    def __init__(self, rng: Random, now: float, *, speculates: bool) -> None:
        self.asked_at = now
        self.left_to_read: float = rng.choice(PROMPT_LENGTHS)
        self.left = rng.choice(ANSWER_LENGTHS)
        self.speculates = speculates
        self.has_tokens = False


class Pool:
    """Steps over all answers. `pace` tells by the number of clients what speculation brings."""

    def __init__(self, gate: SpeculationGate, pace: Callable[[int], Pace], *, greedy: bool = False) -> None:
        self.gate = gate
        self.pace = pace
        self.greedy = greedy
        self.now = 0.0
        self._work, self._chance = Random(0), Random(1)

    def block(self, num_clients: int, num_answers: int) -> float:
        """So many are answered, then all leave. Returns the tokens per second."""
        started, num_tokens, num_done = self.now, 0, 0
        answers = [self._ask() for _ in range(num_clients)]
        for answer in answers[: num_clients // 2]:
            answer.left = max(answer.left // 2, 1)
        while num_done < num_answers:
            self._step(answers)
            for index, answer in enumerate(answers):
                if answer.left_to_read > 0:
                    continue
                tokens = self._tokens(answer, num_clients)
                answer.left -= tokens
                num_tokens += tokens
                first_wait = None if answer.has_tokens else self.now - answer.asked_at
                self.gate.observe(tokens, self.now, first_wait=first_wait)
                answer.has_tokens = True
                answer.speculates = self.gate.is_open
                if answer.left <= 0:
                    self.gate.end(self.now, greedy=self.greedy)
                    num_done += 1
                    answers[index] = self._ask()
        for _ in answers:
            self.gate.end(self.now, greedy=self.greedy)
        seconds = self.now - started
        self.now += PAUSE_SECONDS
        return num_tokens / seconds

    def _ask(self) -> Answer:
        answer = Answer(self._work, self.now, speculates=self.gate.is_open)
        self.gate.begin(self.now, greedy=self.greedy)
        return answer

    def _tokens(self, answer: Answer, num_clients: int) -> int:
        tokens = 1
        while answer.speculates and self._chance.random() < 1.0 - 1.0 / self.pace(num_clients).tokens_mean:
            tokens += 1
        return tokens

    def _step(self, answers: list[Answer]) -> None:
        decoding = [answer for answer in answers if answer.left_to_read <= 0]
        tokens_mean, gain = self.pace(len(answers))
        share = sum(answer.speculates for answer in decoding) / max(len(decoding), 1)
        seconds = (2.0 + 0.35 * len(decoding)) / 1000.0 * (1.0 + share * (tokens_mean / gain - 1.0))
        seconds *= self._chance.lognormvariate(-0.02, 0.2)  # their mean is 1
        budget = max(seconds * 1000.0 / READ_MS, 4.0)
        for answer in sorted((each for each in answers if each.left_to_read > 0), key=lambda each: each.left_to_read):
            if budget <= 0.0:
                break
            read = min(budget, answer.left_to_read)
            answer.left_to_read -= read
            budget -= read
            seconds += read * READ_MS / 1000.0
        self.now += seconds
