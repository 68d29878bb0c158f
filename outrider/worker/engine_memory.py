"""The engine's slots and blocks, and the sampler's, as the memory that a scheduler hands out."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from outrider.core.protocol.messages import DraftOpen, VerifyOpen
from outrider.engine.engine import Engine
from outrider.engine.kv_cache.slots import Slot
from outrider.engine.sample.sampler import Sampler


class EngineMemory:
    """See `Memory`. Device thread only, but for the numbers of blocks and of tokens."""

    def __init__(self, engine: Engine, sampler: Sampler) -> None:
        self._engine = engine
        self._sampler = sampler
        self._slots: dict[int, Slot] = {}
        """Those that were ever held."""
        self._log = structlog.get_logger()

    def slot(self, slot: int) -> Slot:
        """The engine's slot of that number."""
        return self._slots[slot]

    @property
    def num_slots(self) -> int:
        return self._engine.max_sessions

    @property
    def num_free_slots(self) -> int:
        return self._engine.num_free_slots

    @property
    def num_available_blocks(self) -> int:
        return self._engine.blocks.num_available

    def num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._engine.blocks.block_cells)

    def acquire(self, opening: DraftOpen | VerifyOpen) -> int:
        slot = self._engine.acquire(cache_salt=opening.cache_salt)
        self._slots[slot.index] = slot
        prompt, output = opening.token_ids[: opening.num_prompt_tokens], opening.token_ids[opening.num_prompt_tokens :]
        vocab_size = opening.vocab_size if isinstance(opening, DraftOpen) else None
        self._sampler.open(slot.index, opening.sampling, prompt, output, vocab_size)
        return slot.index

    def commit(self, slot: int, token_ids: Sequence[int]) -> None:
        self._sampler.commit(slot, token_ids)

    def release(self, slot: int) -> None:
        self._sampler.close(slot)
        self._engine.release(self._slots[slot])

    def forget(self, slot: int) -> None:
        self._log.debug("preempted", slot=slot, num_tokens=self.num_tokens(slot))
        self._engine.forget(self._slots[slot])

    def num_tokens(self, slot: int) -> int:
        return len(self._slots[slot].cached_prefix)

    def num_cached_tokens(self, slot: int) -> int:
        return self._slots[slot].num_cached_tokens

    def num_held_blocks(self, slot: int) -> int:
        return len(self._slots[slot].blocks)

    def align(self, slot: int, token_ids: Sequence[int]) -> None:
        self._slots[slot].align(token_ids)

    def num_missing_blocks(
        self, slot: int | None, token_ids: Sequence[int], num_nodes: int = 0, *, cache_salt: str = ""
    ) -> int:
        if slot is not None:
            return self._slots[slot].num_missing_blocks(token_ids, num_nodes)
        free = self._engine.acquire(cache_salt=cache_salt)
        num_missing = free.num_missing_blocks(token_ids, num_nodes)
        self._engine.release(free)
        return num_missing
