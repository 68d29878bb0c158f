"""How far a stream of choices has come: it is told in tokens, and reports of rounds tell of them again.

The ids of its events are short, since every event has one. Whoever continues it may bring the tokens that it has in the
body, once, and then nothing is written anew (docs/decisions/0033-continued-streams.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from coordinator.openai.api_error import ApiError
from coordinator.openai.event_id import HEADER, ToldChoice
from coordinator.openai.generation_body import ChoicesBody
from coordinator.openai.stream_position import StreamPosition, other_tokens, tokens_checksum
from outrider.core.coordinate.events import Tokens
from outrider.core.protocol.messages import ModelInfo
from outrider.core.protocol.options import GenerationOptions
from outrider.core.protocol.resume import ReceivedCompletion, Resume

_FIELD = "received_token_ids"


class ChoicesPosition(StreamPosition):
    """That of an answer in choices."""

    def __init__(
        self, last_event_id: str | None, num_prompts: int, num_completions: int, body: ChoicesBody, target: ModelInfo
    ) -> None:
        """See `StreamPosition`. Raises ApiError."""
        super().__init__(last_event_id, num_prompts, num_completions, body, target)
        self._num_completions = num_completions
        self._target_identity_sha256 = target.identity_sha256
        received = body.received_token_ids
        if received is not None:
            self._check(received)
        self._received = None if body.reports_rounds else received  # the rounds of lost coordinators are not known

    @property
    def is_written_anew(self) -> bool:
        """Whether what the client has is generated again, before what follows it."""
        return self._had is not None and self._received is None

    def received(self, choice: int) -> Sequence[int]:
        """The tokens of a choice behind which it goes on: `on_tokens` is to take them in first."""
        return () if self._received is None else self._received[choice]

    def options(self, prompt: int, options: GenerationOptions) -> GenerationOptions:
        """See `StreamPosition`."""
        options = super().options(prompt, options)
        if self._received is None or self._had is None or not self._had.prompts[prompt].has_started:
            return options
        first = prompt * self._num_completions
        received = [
            ReceivedCompletion(token_ids=token_ids)
            for token_ids in self._received[first : first + self._num_completions]
        ]
        return replace(options, resume=Resume(received, self._target_identity_sha256, compares_prompt=True))

    def on_last(self) -> bool:
        """The token counts follow. Returns whether the client has them."""
        self._now = self._now._replace(is_last=True)
        return self._had is not None and self._had.is_last

    def on_tokens(self, choice: int, event: Tokens) -> Sequence[tuple[Tokens, bool]]:
        """A round as far as the client has it, and what is beyond that; with each part whether the client has it.

        Raises ApiError if the client has other tokens.
        """
        num_missing = self._had_of(choice).num_told - self._now.choices[choice].num_told
        if num_missing <= 0:
            self._take(choice, event.tokens, len(event.tokens))
            return [(event, False)]
        head, tail = event.part(0, num_missing), event.part(num_missing, len(event.tokens))
        self._take(choice, head.tokens, len(head.tokens))
        if num_missing == len(head.tokens):
            self._require_same(choice)
        self._take(choice, tail.tokens, len(tail.tokens))
        return [(head, True), (tail, False)] if tail.tokens else [(head, True)]

    def on_reported(self, choice: int) -> bool:
        """What `on_tokens` has taken in is reported. Returns whether reports have told the client of all of it."""
        now = self._now.choices[choice]
        self._now.choices[choice] = now._replace(num_reported=now.num_told)
        return now.num_told <= self._had_of(choice).num_reported

    def on_finished(self, choice: int) -> bool:
        """A choice has ended. Returns whether the client has been told so. Raises ApiError as `on_tokens` does."""
        had, now = self._had_of(choice), self._now.choices[choice]
        self._now.choices[choice] = now._replace(finished=True)
        if had.num_told > now.num_told or (had.finished and had.num_told < now.num_told):
            raise other_tokens()
        return had.finished

    def _check(self, received: Sequence[Sequence[int]]) -> None:
        """Raises ApiError unless these are the tokens that the last event's id tells of."""
        if self._had is None:
            raise ApiError(f"{_FIELD} needs the header {HEADER}: the id of the last event that has come", param=_FIELD)
        choices = self._had.choices
        if len(received) != len(choices) or not all(map(_is_told, choices, received)):
            raise ApiError(
                f"{_FIELD} are not the tokens that came up to the event of {HEADER}: send those of each choice, by its "
                "index, or leave them out, and the answer is written anew",
                param=_FIELD,
            )


def _is_told(choice: ToldChoice, token_ids: Sequence[int]) -> bool:
    return choice.num_told == len(token_ids) and choice.checksum == tokens_checksum(token_ids)
