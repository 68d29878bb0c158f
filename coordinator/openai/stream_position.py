"""How far a stream of choices has come, and how far its client has had it from a coordinator that was lost.

Nothing is kept between requests: the answer is generated anew with its seed, and what the client has is not told again.
That the tokens are the same is checked, since a target that is not batch invariant may choose otherwise.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

from coordinator.openai.api_error import ApiError
from coordinator.openai.event_id import HEADER, EventId, ToldChoice
from coordinator.openai.generation_body import ChoicesBody
from outrider.core.coordinate.events import Started, Token, Tokens
from outrider.core.protocol.messages import ModelInfo
from outrider.core.protocol.options import GenerationOptions


class StreamPosition:
    """That of an answer to one prompt."""

    def __init__(self, last_event_id: str | None, num_choices: int, body: ChoicesBody, target: ModelInfo) -> None:
        """`num_choices` need not be valid yet. Raises ApiError."""
        self._num_choices = num_choices
        self._body = body
        self._target = target
        self._had = None if last_event_id is None else EventId.decode(last_event_id, num_choices)
        self._now = EventId(0, 0, "", b"", [])

    @property
    def had(self) -> EventId | None:
        """The last event that the client has had, if the answer is continued."""
        return self._had

    @property
    def event_id(self) -> bytes:
        """Identity of the event that tells the last of what has been taken in."""
        return self._now.encode()

    def on_last(self) -> bool:
        """The token counts follow. Returns whether the client has them."""
        self._now = self._now._replace(is_last=True)
        return self._had is not None and self._had.is_last

    def options(self, options: GenerationOptions) -> GenerationOptions:
        """The same with the seed that is in force."""
        if self._had is None:
            return options
        return replace(options, draw_seed=False, sampling=replace(options.sampling, seed=self._had.seed))

    def on_started(self, started: Started, created: int, request_id: str) -> None:
        """Raises ApiError if it is another request that was answered before."""
        digest = hashlib.sha256(array("I", started.prompt_token_ids).tobytes())
        # The prompt itself has been hashed as it reads now, perhaps by a template that asks for the date.
        # A prediction changes no token. Whoever continues predicts what it has, which makes few rounds of that.
        without = {"prompt", "messages", "prediction"}
        digest.update(self._body.model_dump_json(exclude=without, exclude_none=True).encode())
        digest.update(self._target.identity_sha256.encode())
        fingerprint = digest.digest()[:8]
        if self._had is not None and fingerprint != self._had.fingerprint:
            raise ApiError(
                f"{HEADER} is of another request, another target, or a conversation that reads otherwise by now; send "
                "the same body with it, or leave it out to begin anew",
                param=HEADER,
            )
        choices = [ToldChoice()] * self._num_choices
        self._now = EventId(created, started.seed, request_id, fingerprint, choices)

    def on_tokens(self, choice: int, event: Tokens) -> Sequence[tuple[Tokens, bool]]:
        """A round as far as the client has it, and what is beyond that; with each part whether the client has it.

        Raises ApiError if the client has other tokens.
        """
        had = ToldChoice() if self._had is None else self._had.choices[choice]
        num_missing = had.num_tokens - self._now.choices[choice].num_tokens
        if num_missing <= 0:
            self._count(choice, event.tokens)
            return [(event, False)]
        head, tail = _part(event, 0, num_missing), _part(event, num_missing, len(event.tokens))
        self._count(choice, head.tokens)
        if num_missing == len(head.tokens):
            self._require_same(choice)
        self._count(choice, tail.tokens)
        return [(head, True), (tail, False)] if tail.tokens else [(head, True)]

    def on_finished(self, choice: int) -> bool:
        """A choice has ended. Returns whether the client has been told so. Raises ApiError as `on_tokens` does."""
        now = self._now.choices[choice]
        self._now.choices[choice] = now._replace(finished=True)
        if self._had is None:
            return False
        had = self._had.choices[choice]
        if had.num_tokens > now.num_tokens or (had.finished and had.num_tokens < now.num_tokens):
            raise _other_tokens()
        return had.finished

    def _count(self, choice: int, tokens: Sequence[Token]) -> None:
        now = self._now.choices[choice]
        checksum = crc32(array("I", [token.token_id for token in tokens]).tobytes(), now.checksum)
        self._now.choices[choice] = ToldChoice(now.num_tokens + len(tokens), checksum)

    def _require_same(self, choice: int) -> None:
        if self._had is not None and self._had.choices[choice].checksum != self._now.choices[choice].checksum:
            raise _other_tokens()


def stream_position(
    last_event_id: str | None, num_prompts: int, num_choices: int, body: ChoicesBody, target: ModelInfo
) -> StreamPosition | None:
    """Where a request's stream begins; None if its events have no ids. Raises ApiError if it cannot begin there."""
    if body.stream and num_prompts == 1:
        return StreamPosition(last_event_id, num_choices, body, target)
    if last_event_id is not None:
        raise ApiError(f"{HEADER} needs stream: true and one prompt", param=HEADER)
    return None


def _part(event: Tokens, begin: int, end: int) -> Tokens:
    tokens = event.tokens[begin:end]
    text = "".join(token.text for token in tokens)
    return replace(event, position=event.position + begin, text=text, tokens=tokens)


def _other_tokens() -> ApiError:
    return ApiError(
        "other tokens have come this time than those that were sent, so the answer cannot go on; begin anew. A target "
        "that is not batch invariant, as x-outrider-batch-invariant tells, may choose otherwise",
        param=HEADER,
        code="not_reproduced",
    )
