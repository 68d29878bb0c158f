"""Speculation is paused and resumed in mid-answer, time and again: the tokens stay the same."""

from __future__ import annotations

import asyncio

import pytest

from outrider.client import GenerationMode
from outrider.core.estimate.speculation_gate import SpeculationGate
from outrider.core.protocol.messages import TokenOrigin
from outrider.core.protocol.sampling import SamplingParams
from tests.e2e.answers import ask
from tests.e2e.stack import bundled, coordinator, worker

PROMPTS = ("import os\n\n\ndef walk(", "class Queue:\n    def __init__(self, maxsize=0):\n")
SAMPLINGS = (SamplingParams(), SamplingParams(temperature=0.8, seed=5))
TURNS_AFTER_ROUNDS = 7


class TurningGate(SpeculationGate):
    """Turns after so many rounds of all completions."""

    def __init__(self) -> None:
        super().__init__(adaptive=False)
        self._num_rounds = 0
        self.num_turns = 0

    def observe(self, num_tokens: int, seconds: float) -> None:
        self._num_rounds += 1
        if self._num_rounds % TURNS_AFTER_ROUNDS == 0:
            self.is_open = not self.is_open
            self.num_turns += 1


@pytest.mark.asyncio
async def test_an_answer_that_is_paused_and_resumed_has_the_targets_tokens() -> None:
    asked = [(prompt, sampling) for prompt in PROMPTS for sampling in SAMPLINGS]
    async with worker(bundled("target")) as verifier, worker(bundled("draft"), draft=True) as drafter:
        async with coordinator(verifier.address, drafter.address) as running:
            alone = [await ask(running.client, p, sampling=s, max_tokens=64, speculate=False) for p, s in asked]
            gate = running.service._gate = TurningGate()
            for prompt, sampling in asked:
                answers = await asyncio.gather(
                    *(ask(running.client, prompt, sampling=sampling, max_tokens=64) for _ in range(2))
                )
                (expected,) = [each for each, what in zip(alone, asked, strict=True) if what == (prompt, sampling)]
                for answer in answers:
                    assert answer.token_ids == expected.token_ids
                    assert answer.text == expected.text
            assert gate.num_turns > 20
            shut = running.service._gate = SpeculationGate(adaptive=False)
            shut.is_open = False
            paused = await ask(running.client, PROMPTS[0], max_tokens=6)
            assert paused.finished.mode is GenerationMode.TARGET_ONLY
            assert "without drafts" in paused.finished.mode_reason
            assert {token.origin for tokens in paused.rounds for token in tokens.tokens} == {TokenOrigin.TARGET}
        await verifier.all_slots_free()
        await drafter.all_slots_free()
