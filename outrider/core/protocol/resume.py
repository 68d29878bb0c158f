"""Resuming: what a client has of an answer, from which another coordinator continues it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedCompletion:
    """What has come of one completion."""

    token_ids: Sequence[int] = ()
    """The generated tokens, from the first on."""
    finished: bool = False
    """Whether its end has come; its tokens are left out then."""
    num_cached_prompt_tokens: int | None = None
    """As its first `Tokens` said; None if none has come."""


NOTHING_RECEIVED: Final = ReceivedCompletion()
"""What a client has before an answer begins."""


@dataclass(frozen=True, slots=True)
class Resume:
    """What has come of an answer."""

    completions: Sequence[ReceivedCompletion]
    """In order of their numbers."""
    target_identity_sha256: str
    """Of the target that began it."""
    compares_prompt: bool = False
    """Whether whoever resumes compares `Started.prompt_token_ids` with those that were continued before: only then may
    the prompt be a text."""
