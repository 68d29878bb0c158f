"""How far a stream has come, and how far its client has had it from a coordinator that was lost.

Nothing is kept between requests. Either the client brings its tokens, and the answer goes on behind them; or it is
generated anew with its seeds, and what the client has is not told again. That the tokens are the same is checked, since
a target that is not batch invariant may choose otherwise.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import replace
from zlib import crc32

from coordinator.openai.api_error import ApiError
from coordinator.openai.event_id import HEADER, EventId, ToldChoice, ToldPrompt
from coordinator.openai.generation_body import GenerationBody
from outrider.core.coordinate.events import Started, Token
from outrider.core.protocol.messages import ModelInfo
from outrider.core.protocol.options import GenerationOptions

_PROMPT_FIELDS = {"prompt", "messages", "input", "instructions"}
"""What the tokens of a prompt are made of: these are hashed as they read now, perhaps by a template that asks for the
date."""

_BROUGHT_FIELDS = {"prediction", "received_token_ids"}
"""They change no token: whoever continues a request may have others than before."""


class StreamPosition:
    """That of an answer."""

    def __init__(
        self, last_event_id: str | None, num_prompts: int, num_completions: int, body: GenerationBody, target: ModelInfo
    ) -> None:
        """`num_completions`, of each prompt, need not be valid yet. Raises ApiError."""
        self._num_prompts = num_prompts
        self._num_choices = num_prompts * num_completions
        self._had = None if last_event_id is None else EventId.decode(last_event_id, num_prompts, self._num_choices)
        self._now = EventId(0, "", [], [])
        told = body.model_dump_json(exclude=_PROMPT_FIELDS | _BROUGHT_FIELDS, exclude_none=True)
        self._digest = hashlib.sha256(f"{target.identity_sha256} {told}".encode())

    @property
    def had(self) -> EventId | None:
        """The last event that the client has had, if the answer is continued."""
        return self._had

    @property
    def event_id(self) -> bytes:
        """Identity of the event that tells the last of what has been taken in."""
        return self._now.encode()

    def options(self, prompt: int, options: GenerationOptions) -> GenerationOptions:
        """The same for one of the prompts, with the seed that is in force."""
        if self._had is None or not self._had.prompts[prompt].has_started:
            return options
        seed = self._had.prompts[prompt].seed
        return replace(options, draw_seed=False, sampling=replace(options.sampling, seed=seed))

    def on_started(self, prompt: int, started: Started, created: int, request_id: str) -> None:
        """Raises ApiError if it is another request that was answered before."""
        digest = self._digest.copy()
        digest.update(array("I", started.prompt_token_ids).tobytes())
        now = ToldPrompt(started.seed, digest.digest()[:8])
        had = now if self._had is None or not self._had.prompts[prompt].has_started else self._had.prompts[prompt]
        if had.fingerprint != now.fingerprint:
            raise ApiError(
                f"{HEADER} is of another request, another target, or a conversation that reads otherwise by now; send "
                "the same body with it, or leave it out to begin anew",
                param=HEADER,
            )
        if not self._now.prompts:
            self._now = EventId(
                created, request_id, [ToldPrompt()] * self._num_prompts, [ToldChoice()] * self._num_choices
            )
        self._now.prompts[prompt] = now

    def _had_of(self, choice: int) -> ToldChoice:
        return ToldChoice() if self._had is None else self._had.choices[choice]

    def _take(self, choice: int, tokens: Iterable[Token], num_told: int) -> None:
        """Takes tokens in, and how much they tell."""
        now = self._now.choices[choice]
        checksum = tokens_checksum((token.token_id for token in tokens), now.checksum)
        self._now.choices[choice] = now._replace(num_told=now.num_told + num_told, checksum=checksum)

    def _require_same(self, choice: int) -> None:
        if self._had_of(choice).checksum != self._now.choices[choice].checksum:
            raise other_tokens()


def tokens_checksum(token_ids: Iterable[int], before: int = 0) -> int:
    """That of tokens which follow those with the checksum `before`."""
    return crc32(array("I", token_ids).tobytes(), before)


def other_tokens() -> ApiError:
    """The answer cannot go on where its client says."""
    return ApiError(
        "other tokens have come this time than those that were sent, so the answer cannot go on; begin anew. A target "
        "that is not batch invariant, as x-outrider-batch-invariant tells, may choose otherwise",
        param=HEADER,
        code="not_reproduced",
    )
