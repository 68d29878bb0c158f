"""Sampling parameters: how the next token is chosen from the target's logits."""

from __future__ import annotations

from dataclasses import dataclass, field

from outrider.core.protocol.grammar import Grammar


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """One request's sampling parameters, with every default resolved. Ranges are in `validation.py`.

    Processing order: grammar, logit bias, repetition penalty, frequency and presence penalties, temperature, top-k,
    top-p, min-p, then the choice by noise that depends on (seed, position, token) alone. Temperature 0 takes the
    argmax.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = field(default=())
    seed: int = 0
    grammar: Grammar | None = None
    """What the answer's text must match."""

    @property
    def greedy(self) -> bool:
        """Whether the choice is the argmax of the processed logits."""
        return self.temperature == 0.0

    @property
    def penalized(self) -> bool:
        """Whether the choice depends on which tokens the line already holds."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


def completion_seed(seed: int, completion: int) -> int:
    """The seed of a request's completion number `completion`, so that each is what a request for it alone gives.

    Seeds are unsigned 64-bit integers: after the largest comes 0.
    """
    return (seed + completion) % 2**64
