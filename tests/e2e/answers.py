"""Whole answers of the client, for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from outrider.client import Finished, GenerationClient, Started, Tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """One generation from its first to its last event."""

    started: Started
    rounds: list[Tokens]
    finished: Finished

    @property
    def token_ids(self) -> list[int]:
        return [token.token_id for tokens in self.rounds for token in tokens.tokens]

    @property
    def text(self) -> str:
        return "".join(tokens.text for tokens in self.rounds) + self.finished.text


async def ask(client: GenerationClient, prompt: str | Sequence[int], **arguments: Any) -> Answer:
    """Runs one generation and checks that its events come in order and without gap."""
    events = [event async for event in client.generate(prompt, **arguments)]
    started, finished = events[0], events[-1]
    rounds = [event for event in events[1:-1] if isinstance(event, Tokens)]
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert len(rounds) == len(events) - 2
    position = len(started.prompt_token_ids)
    for tokens in rounds:
        assert tokens.position == position
        assert tokens.text == "".join(token.text for token in tokens.tokens)
        position += len(tokens.tokens)
    assert finished.usage.num_generated_tokens == position - len(started.prompt_token_ids)
    return Answer(started, rounds, finished)
