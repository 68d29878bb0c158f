"""How far a stream of choices has come: it is told in tokens, and reports of rounds tell of them again."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.openai.stream_position import StreamPosition, other_tokens
from outrider.core.coordinate.events import Tokens


class ChoicesPosition(StreamPosition):
    """That of an answer in choices."""

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
