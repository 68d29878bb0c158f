"""The memory that a scheduler hands out: slots, and the blocks of KV cache that their sessions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from outrider.core.protocol.messages import DraftOpen, VerifyOpen


class Memory(Protocol):
    """One device's slots, by number, and its blocks of KV cache.

    A slot is what the device keeps of one session: the KV cache of its line and tree, in blocks, and the state of its
    sampling. The caller passes the same list of token ids for one line each time; it may only grow.
    """

    @property
    def num_slots(self) -> int:
        """How many there are, held or free."""
        ...

    @property
    def num_free_slots(self) -> int:
        """Slots that no session holds."""
        ...

    @property
    def num_available_blocks(self) -> int:
        """Blocks that no slot holds, those with a prefix that is still cached among them."""
        ...

    def num_blocks(self, num_tokens: int) -> int:
        """How many blocks hold so many tokens."""
        ...

    def acquire(self, opening: DraftOpen | VerifyOpen) -> int:
        """A slot for a new session, at the end of its line. Raises SlotsExhaustedError."""
        ...

    def commit(self, slot: int, token_ids: Sequence[int]) -> None:
        """Tells the slot's sampling which tokens its line has grown by."""
        ...

    def release(self, slot: int) -> None:
        """Ends a session's hold on its slot and on its blocks."""
        ...

    def forget(self, slot: int) -> None:
        """Takes a slot's blocks from it. It stays the session's own, and its line has to be fed again."""
        ...

    def num_tokens(self, slot: int) -> int:
        """How many tokens of its line the slot holds."""
        ...

    def num_cached_tokens(self, slot: int) -> int:
        """How many of them it found in the prefix cache rather than compute them."""
        ...

    def num_held_blocks(self, slot: int) -> int:
        """How many blocks the slot holds."""
        ...

    def align(self, slot: int, token_ids: Sequence[int]) -> None:
        """Makes what the slot holds agree with its line, and takes over what others have computed of it."""
        ...

    def num_missing_blocks(
        self, slot: int | None, token_ids: Sequence[int], num_nodes: int = 0, *, cache_salt: str = ""
    ) -> int:
        """How many available blocks feeding a line and a tree of so many nodes takes at most; None: of a free slot, for
        a session with that salt.

        The sessions of a step may run if their sum is at most `num_available_blocks`. Ask again when a slot was
        released or made to forget: what a session would have shared with it, it has to take now.
        """
        ...
