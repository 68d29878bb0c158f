"""How far the stream of a response has come: it is told in events."""

from __future__ import annotations

from coordinator.openai.stream_position import StreamPosition, other_tokens
from outrider.core.coordinate.events import Token


class ResponsePosition(StreamPosition):
    """That of a response, whose events follow from its tokens, however rounds bring them."""

    def on_token(self, token: Token) -> None:
        """The events that follow are told with it."""
        self._take(0, (token,), 0)

    def on_event(self) -> bool:
        """One more event. Returns whether the client has it. Raises ApiError if the client has other tokens."""
        self._take(0, (), 1)
        had, now = self._had_of(0), self._now.choices[0]
        if now.num_told == had.num_told:
            self._require_same(0)
        return now.num_told <= had.num_told

    def on_finished(self) -> None:
        """There are no more events. Raises ApiError as `on_event` does."""
        if self._had_of(0).num_told > self._now.choices[0].num_told:
            raise other_tokens()
