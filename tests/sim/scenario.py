"""One schedule's circumstances, drawn from its seed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from random import Random

from outrider.core.protocol.messages import FinishReason, VerifyOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.validation import AUTOMATIC_WIDTH_MAX

from .toys import ToyDraft, ToyTarget


class Conduct(Enum):
    """What becomes of the drafter."""

    FAITHFUL = 1
    """It drafts to the end."""
    ABSENT = 2
    """It was never there."""
    MORTAL = 3
    """It dies at a random moment; what it sent before may still arrive."""
    SLIPPING = 4
    """It sends one window that breaks the protocol."""
    BABBLING = 5
    """It sends windows of random content, well-formed and not."""


ACTORS = ("drafter", "verifier", "drafter->coordinator", "coordinator->drafter", "coordinator->verifier",
          "verifier->coordinator")  # fmt: skip
"""Whoever can make the next move: two workers and four links. The coordinator only reacts."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a world is made of."""

    target: ToyTarget
    draft: ToyDraft
    prompt: list[int]
    max_length: int
    stop_token_ids: frozenset[int]
    ignore_eos: bool
    max_run_ahead: int
    max_draft_tokens: int
    conduct: Conduct
    accident_at: int
    """Index of the event at which the drafter dies or slips."""
    stop_string_at: int | None
    """After how many tokens the text meets a stop string, if it does."""
    repeat_rate: float
    """How often a delivery is followed by a repetition of an earlier one on the same stream."""
    automatic_width: bool
    """Whether the drafter is left to decide how many of its guesses are worth it."""
    ngrams: bool
    """Whether the verifier looks up what the line's past says."""
    prediction: list[int]
    """What the client says that the text will be; empty if it says nothing."""
    speeds: dict[str, int]
    """How fast each actor is, against the others."""
    num_positions: int
    """For how many places a pass of the draft model proposes: above 1 it is a parallel one."""

    def expected(self) -> tuple[list[int], FinishReason]:
        """What the target alone writes, and why it ends."""
        return self.target.decode_alone(self.prompt, self.max_length, self.stop_token_ids, self.ignore_eos)

    def opening(self) -> VerifyOpen:
        """Of a session at its beginning, without drafts or a prediction."""
        return VerifyOpen(
            session_id="",
            token_ids=self.prompt,
            num_prompt_tokens=len(self.prompt),
            sampling=SamplingParams(),
            max_length=self.max_length,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            max_draft_tokens=self.max_draft_tokens,
        )


def draw_scenario(rng: Random) -> Scenario:
    """Draws everything that may vary."""
    target = ToyTarget(rng.getrandbits(64), rng.randint(6, 60), rng.choice((0, 0, 1, 3)))
    width = rng.randint(1, 4)
    prompt = [rng.randrange(target.vocab_size) for _ in range(rng.randint(1, 8))]
    num_stops = rng.choice((0, 0, 0, 1, 2))
    max_run_ahead = rng.randint(width, 16)
    max_length = len(prompt) + rng.randint(1, 48)
    return Scenario(
        target=target,
        draft=ToyDraft(target, width, rng.choice((0.0, 0.5, 0.7, 0.8, 0.9, 1.0))),
        prompt=prompt,
        max_length=max_length,
        stop_token_ids=frozenset(rng.randrange(target.vocab_size) for _ in range(num_stops)),
        ignore_eos=rng.random() < 0.4,
        max_run_ahead=max_run_ahead,
        max_draft_tokens=rng.randint(0, 16),
        conduct=rng.choices(list(Conduct), weights=(50, 5, 20, 15, 10))[0],
        accident_at=rng.randint(0, 200),
        stop_string_at=rng.randint(1, 16) if rng.random() < 0.1 else None,
        repeat_rate=rng.choice((0.0, 0.1, 0.4)),
        automatic_width=max_run_ahead >= AUTOMATIC_WIDTH_MAX and rng.random() < 0.3,
        ngrams=rng.random() < 0.5,
        speeds=_draw_speeds(rng),
        prediction=_draw_prediction(rng, target, prompt, max_length),
        num_positions=rng.choice((1, 1, 4)),
    )


def _draw_prediction(rng: Random, target: ToyTarget, prompt: list[int], max_length: int) -> list[int]:
    """In half of the schedules none; else the target's own text, of which blocks are lost and words changed, or nothing
    like it."""
    if rng.random() < 0.5:
        return []
    text, _ = target.decode_alone(prompt, max_length, frozenset(), True)
    wrong = rng.choice((0.0, 0.1, 1.0))
    predicted = [rng.randrange(target.vocab_size) if rng.random() < wrong else token_id for token_id in text]
    first = rng.randrange(len(text))
    del predicted[first : first + rng.choice((0, 4))]
    return predicted


def _draw_speeds(rng: Random) -> dict[str, int]:
    """In half of the schedules drafts come in time; in the others anyone may lag behind anyone."""
    if rng.random() < 0.5:
        return dict.fromkeys(ACTORS, 64) | {"verifier": rng.choice((1, 4))}
    return {actor: rng.choice((1, 4, 16, 64)) for actor in ACTORS}
