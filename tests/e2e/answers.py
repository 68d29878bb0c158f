"""Whole answers of the client, for comparison."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pytest

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
    (answer,) = await ask_all(client, prompt, **arguments)
    return answer


async def ask_all(client: GenerationClient, prompt: str | Sequence[int], **arguments: Any) -> list[Answer]:
    """Runs one generation of one or several completions and checks the order of each one's events."""
    started, *events = [event async for event in client.generate(prompt, **arguments)]
    assert isinstance(started, Started)
    num_completions: int = arguments.get("num_completions") or 1
    answers: list[Answer] = []
    for completion in range(num_completions):
        *rounds, finished = [
            event for event in events if not isinstance(event, Started) and event.completion == completion
        ]
        position = len(started.prompt_token_ids)
        for tokens in rounds:
            assert isinstance(tokens, Tokens)
            assert tokens.position == position
            assert tokens.text == "".join(token.text for token in tokens.tokens)
            position += len(tokens.tokens)
        assert isinstance(finished, Finished)
        assert finished.usage.num_generated_tokens == position - len(started.prompt_token_ids)
        answers.append(Answer(started, [event for event in rounds if isinstance(event, Tokens)], finished))
    assert sum(len(answer.rounds) + 1 for answer in answers) == len(events)
    return answers


async def ask_until(
    client: GenerationClient, prompt: str | Sequence[int], happens: Callable[[], Awaitable[object]], **arguments: Any
) -> Answer:
    """Runs one generation, in whose midst something happens: behind its first tokens. It is not continued."""
    rounds: list[Tokens] = []
    async with aclosing(client.generate(prompt, **arguments)) as events:
        started = await anext(events)
        assert isinstance(started, Started)
        async for event in events:
            if isinstance(event, Tokens):
                if not rounds:
                    await happens()
                rounds.append(event)
    assert isinstance(event, Finished)
    return Answer(started, rounds, event)


def assert_same(answer: Answer, expected: Answer) -> None:
    """The same tokens, and log-probabilities that differ by no more than the order of sums."""
    assert answer.token_ids == expected.token_ids
    assert answer.text == expected.text
    assert answer.finished.reason is expected.finished.reason
    for one, other in zip(answer.rounds, answer.rounds[1:], strict=False):
        assert other.position == one.position + len(one.tokens), "a gap or a repetition"
    pairs = zip(_logprobs(answer), _logprobs(expected), strict=True)
    assert all(one == pytest.approx(other, abs=1e-4) for one, other in pairs)


def _logprobs(answer: Answer) -> list[float]:
    return [token.logprobs.logprob for tokens in answer.rounds for token in tokens.tokens if token.logprobs]
