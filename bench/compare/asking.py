"""What can be asked for a continuation, and how long the answer took by the asker's clock."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Protocol

from bench.compare.sample import Round, Sample
from outrider.client import Finished, GenerationClient, SamplingParams, TokenOrigin, Tokens


class Source(Protocol):
    """Whatever continues a prompt."""

    async def ask(self, prompt: Sequence[int], sampling: SamplingParams, max_tokens: int) -> Sample:
        """Continues `prompt` by exactly `max_tokens` tokens, end-of-text or not. Raises OutriderError."""
        ...


class CoordinatorSource:
    """A coordinator, ours or somebody's."""

    def __init__(self, client: GenerationClient, *, speculate: bool = True, prediction: str = "") -> None:
        self._client = client
        self._speculate = speculate
        self._prediction = prediction

    async def ask(self, prompt: Sequence[int], sampling: SamplingParams, max_tokens: int) -> Sample:
        """See `Source`."""
        rounds: list[Round] = []
        token_ids: list[int] = []
        first = last = 0.0
        finished: Finished | None = None
        started = time.perf_counter()
        async for event in self._client.generate(
            prompt,
            sampling=sampling,
            max_tokens=max_tokens,
            ignore_eos=True,
            speculate=self._speculate,
            prediction=self._prediction,
        ):
            if isinstance(event, Tokens):
                last = time.perf_counter()
                first = first or last
                token_ids.extend(token.token_id for token in event.tokens)
                rounds.append(_round(event))
            elif isinstance(event, Finished):
                finished = event
        assert finished is not None
        return Sample(
            first_token_ms=(first - started) * 1000.0,
            total_ms=(last - started) * 1000.0,
            rounds=rounds,
            token_ids=token_ids,
            statistics={
                **asdict(finished.speculation),
                **asdict(finished.timings),
                "mode": finished.mode.name.lower(),
                "mode_reason": finished.mode_reason,
            },
        )


def _round(event: Tokens) -> Round:
    origins = [token.origin for token in event.tokens]
    return Round(
        num_tokens=len(origins),
        num_draft_tokens=event.num_draft_tokens,
        num_accepted=origins.count(TokenOrigin.ACCEPTED),
    )
