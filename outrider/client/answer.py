"""Whole answers: a generation's events gathered, for those who do not want them one by one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from outrider.core.coordinate.events import Event, Finished, Started, Tokens
from outrider.core.coordinate.round import Round
from outrider.core.coordinate.statistics import Speculation, total
from outrider.core.protocol.messages import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation of the prompt, from its beginning to its end."""

    seed: int
    """A request for one completion with this seed gives the same tokens."""
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    """One for each token if they were asked for, else empty."""
    finished: Finished


@dataclass(frozen=True, slots=True)
class Answer:
    """All that a request gave."""

    started: Started
    completions: tuple[Completion, ...]
    """In order of their numbers; a request that does not say how many has one."""

    @property
    def speculation(self) -> Speculation:
        """What speculation did for all completions together."""
        return total([completion.finished.speculation for completion in self.completions])


@dataclass(slots=True)
class _Growing:
    """A completion so far."""

    texts: list[str] = field(default_factory=list[str])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])


async def gather(events: AsyncGenerator[Event, None], watch: Callable[[Event], None] | None = None) -> Answer:
    """Runs what `GenerationClient.generate` returned to its end; `watch` sees each event as it comes.

        answer = await gather(client.generate("import os", num_completions=3))
        texts = [completion.text for completion in answer.completions]

    Raises what the iteration raises: OutriderErrors.
    """
    growing: dict[int, _Growing] = {}
    completions: dict[int, Completion] = {}
    started: Started | None = None
    async with aclosing(events):
        async for event in events:
            if watch is not None:
                watch(event)
            if isinstance(event, Started):
                started = event
                continue
            if isinstance(event, Round):
                continue
            part = growing.setdefault(event.completion, _Growing())
            part.texts.append(event.text)
            if isinstance(event, Tokens):
                part.token_ids.extend(token.token_id for token in event.tokens)
                part.logprobs.extend(token.logprobs for token in event.tokens if token.logprobs is not None)
                continue
            assert started is not None
            completions[event.completion] = Completion(
                seed=started.seed_of(event.completion),
                text="".join(part.texts),
                token_ids=tuple(part.token_ids),
                logprobs=tuple(part.logprobs),
                finished=event,
            )
    assert started is not None
    return Answer(started, tuple(completions[index] for index in sorted(completions)))
