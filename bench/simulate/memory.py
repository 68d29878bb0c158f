"""Memory that never runs out, for schedulers without a device."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from outrider.core.protocol.messages import DraftOpen, VerifyOpen


class AmpleMemory:
    """See `Memory`. Prompts are prefilled, but for their last token, when their sessions are seated."""

    num_slots = num_free_slots = num_available_blocks = 2**31

    def __init__(self) -> None:
        self._slots = itertools.count()
        self._num_tokens: dict[int, int] = {}

    def feed(self, slot: int, num_tokens: int) -> None:
        """A step has fed the slot's line up to so many tokens."""
        self._num_tokens[slot] = num_tokens

    def num_blocks(self, num_tokens: int) -> int:
        """None: nothing is counted."""
        return 0

    def acquire(self, opening: DraftOpen | VerifyOpen) -> int:
        """Always another one."""
        slot = next(self._slots)
        self._num_tokens[slot] = len(opening.token_ids) - 1
        return slot

    def commit(self, slot: int, token_ids: Sequence[int]) -> None:
        """Samples nothing."""

    def release(self, slot: int) -> None:
        """Forgets it."""
        del self._num_tokens[slot]

    def forget(self, slot: int) -> None:
        """Keeps the slot alone."""
        self._num_tokens[slot] = 0

    def num_tokens(self, slot: int) -> int:
        """As was fed."""
        return self._num_tokens[slot]

    def num_cached_tokens(self, slot: int) -> int:
        """None: sessions share nothing."""
        return 0

    def num_held_blocks(self, slot: int) -> int:
        """None."""
        return 0

    def align(self, slot: int, token_ids: Sequence[int]) -> None:
        """Has nothing to take over."""

    def num_missing_blocks(
        self, slot: int | None, token_ids: Sequence[int], num_nodes: int = 0, *, cache_salt: str = ""
    ) -> int:
        """None."""
        return 0
