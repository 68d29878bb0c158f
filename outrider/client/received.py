"""What has come of an answer: enough to go on with it at another coordinator, and to tell its end as one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from outrider.core.coordinate.events import Event, Finished, Started, Tokens
from outrider.core.coordinate.statistics import SpeculationStatistics, total
from outrider.core.protocol.chat_prompt import ChatPrompt
from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.messages import TokenOrigin
from outrider.core.protocol.options import GenerationOptions, Prompt
from outrider.core.protocol.resume import ReceivedCompletion, Resume
from outrider.core.protocol.validation import COMPLETIONS_MAX

_NOT_BEGUN = "the server's events do not begin with one `started`; report this"


@dataclass(slots=True)
class _Completion:
    """One completion so far."""

    token_ids: list[int] = field(default_factory=list[int])
    num_cached_prompt_tokens: int | None = None
    finished: bool = False
    seen: SpeculationStatistics = field(default_factory=SpeculationStatistics)
    """What its rounds tell."""
    before: SpeculationStatistics = field(default_factory=SpeculationStatistics)
    """The same as it was when the last coordinator was lost."""


class ReceivedAnswer:
    """The answer to one request, by whichever coordinators it comes."""

    def __init__(self, prompt: Prompt | ChatPrompt, options: GenerationOptions, clock: Callable[[], float]) -> None:
        """`clock` is in seconds and only rises."""
        self._prompt = prompt
        self._options = options
        self._clock = clock
        self._asked = clock()
        self._first_token_ms = 0.0
        self._started: Started | None = None
        self._awaits_started = True
        self._is_resumed = False
        num_completions = min(options.num_completions or 1, COMPLETIONS_MAX)  # more are refused
        self._completions = [_Completion() for _ in range(num_completions)]

    @property
    def has_begun(self) -> bool:
        """Whether a coordinator has accepted the request."""
        return self._started is not None

    @property
    def is_whole(self) -> bool:
        """Whether every completion has come to its end."""
        return all(each.finished for each in self._completions)

    def on_event(self, event: Event) -> Event | None:
        """What the caller is to see of an event; None if it has seen it.

        Raises ProtocolViolationError if it cannot be what follows.
        """
        if isinstance(event, Started):
            return self._on_started(event)
        if self._started is None or self._awaits_started or event.completion >= len(self._completions):
            raise ProtocolViolationError(_NOT_BEGUN)
        completion = self._completions[event.completion]
        if completion.finished:
            raise ProtocolViolationError("the server goes on behind the end of a completion; report this")
        match event:
            case Tokens():
                self._on_tokens(completion, event, len(self._started.prompt_token_ids))
            case Finished():
                completion.finished = True
                return self._whole(completion, event) if self._is_resumed else event
        return event

    def request(self) -> tuple[Prompt | ChatPrompt, GenerationOptions]:
        """What to ask a coordinator for: all of the answer, or what is missing."""
        started = self._started
        if started is None:
            return self._prompt, self._options
        resume = Resume([_received(each) for each in self._completions], started.target_identity_sha256)
        sampling = replace(self._options.sampling, seed=started.seed)
        options = replace(self._options, sampling=sampling, draw_seed=False, resume=resume)
        return started.prompt_token_ids, options

    def on_lost(self) -> None:
        """The coordinator is lost: what comes from here on is another one's."""
        self._awaits_started = True
        self._is_resumed = self._started is not None
        for each in self._completions:
            each.before = copy.deepcopy(each.seen)

    def _on_started(self, event: Started) -> Started | None:
        if not self._awaits_started:
            raise ProtocolViolationError(_NOT_BEGUN)
        self._awaits_started = False
        known, self._started = self._started, self._started or event
        if known is None:
            return event
        if (event.prompt_token_ids, event.seed) != (known.prompt_token_ids, known.seed):
            raise ProtocolViolationError("the server resumed another answer than this one; report this")
        return None

    def _on_tokens(self, completion: _Completion, event: Tokens, num_prompt_tokens: int) -> None:
        if event.position != num_prompt_tokens + len(completion.token_ids) or not event.tokens:
            raise ProtocolViolationError("the server repeated tokens or left some out; report this")
        if not completion.token_ids:
            completion.num_cached_prompt_tokens = event.num_cached_prompt_tokens
        completion.token_ids.extend(token.token_id for token in event.tokens)
        self._first_token_ms = self._first_token_ms or self._elapsed_ms()
        _count(completion.seen, event)

    def _whole(self, completion: _Completion, finished: Finished) -> Finished:
        """The end of a completion that several coordinators wrote, with the counts of all its rounds.

        What only a lost coordinator knew, such as the time of its steps, is not in it.
        """
        timings = replace(finished.timings, first_token_ms=self._first_token_ms, total_ms=self._elapsed_ms())
        speculation = total([completion.before.speculation, finished.speculation])
        return replace(finished, speculation=speculation, timings=timings)

    def _elapsed_ms(self) -> float:
        return (self._clock() - self._asked) * 1000.0


def _received(completion: _Completion) -> ReceivedCompletion:
    if completion.finished:
        return ReceivedCompletion(finished=True)
    return ReceivedCompletion(
        token_ids=completion.token_ids, num_cached_prompt_tokens=completion.num_cached_prompt_tokens
    )


def _count(seen: SpeculationStatistics, event: Tokens) -> None:
    origins = [token.origin for token in event.tokens]
    num_accepted = origins.count(TokenOrigin.ACCEPTED)
    seen.num_rounds += 1
    seen.num_draft_tokens += event.num_draft_tokens
    seen.num_accepted_tokens += num_accepted
    seen.num_committed_tokens += len(origins)
    seen.num_rollbacks += event.rolled_back
    seen.num_rejections += origins[-1] is TokenOrigin.RECOVERED
    seen.num_bonuses += origins[-1] is TokenOrigin.BONUS
    seen.accepted_by_round.append(num_accepted)
