"""Where one session's text stands in its grammar: on the line, and on any path of guesses after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from outrider.grammar.compiled import CompiledGrammar

_INSIDE: Final = -1
"""The grammar has begun."""

_ENDED: Final = -2
"""An end-of-text token stands there: nothing follows."""


class GrammarState:
    """A `Constraint`, and masks. It goes to a path from the one before by rolling back to what both begin with.

    Not thread-safe: whoever asks next waits for who asked before.
    """

    __slots__ = ("_compiled", "_eos_last", "_matcher", "_num_consumed", "_path", "_places", "_root_mask", "is_lost")

    def __init__(self, compiled: CompiledGrammar, *, eos_last: bool = False) -> None:
        """Where nothing is written yet. With `eos_last` a text ends only where nothing else may follow."""
        self._compiled = compiled
        self._eos_last = eos_last
        self._matcher = compiled.matcher.deep_copy()
        self._path: list[int] = []
        """Tokens after the line that the matcher has read."""
        self._places = [_INSIDE if compiled.tag is None else 0]
        """At the line's end and after each of them: a state of the tag, or one of the numbers above."""
        self._num_consumed: list[int] = []
        """How many tokens the matcher read for each of them."""
        self._root_mask: bytes | None = None
        self.is_lost = False
        """Whether the line has left the grammar, or the grammar proved too complex: nothing is known from then on."""

    def fork(self) -> GrammarState:
        """Another one at the line's end, which goes its own way from there."""
        self._goes_to(())
        other = GrammarState(self._compiled, eos_last=self._eos_last)
        other._matcher = self._matcher.deep_copy()
        other._places, other.is_lost = list(self._places), self.is_lost
        return other

    def commit(self, token_ids: Sequence[int]) -> None:
        """See `Constraint.commit`. A line that cannot be followed is lost."""
        self._root_mask = None
        if not self._goes_to(token_ids):
            self.is_lost = True
        self._path.clear()
        self._num_consumed.clear()
        del self._places[:-1]

    def allows(self, path: Sequence[int]) -> bool:
        """See `Constraint.allows`."""
        return self.is_lost or self._goes_to(path)

    def forced(self, path: Sequence[int]) -> int | None:
        """See `Constraint.forced`."""
        if self.is_lost or not self._goes_to(path) or self._places[-1] != _INSIDE:
            return None
        return next(iter(self._matcher.compute_ff_tokens()), None)

    def mask(self, path: Sequence[int]) -> bytes:
        """Which tokens may follow the line and then `path`: see `Vocabulary.num_mask_bytes`.

        Those are none where the path is forbidden, or ends the text.

        Raises RuntimeError if the line is lost.
        """
        if not path and self._root_mask is not None:
            return self._root_mask
        if self.is_lost:
            raise RuntimeError("the line has left its grammar, or the grammar is too complex to be followed")
        mask = self._mask(path)
        if not path:
            self._root_mask = mask
        return mask

    def _mask(self, path: Sequence[int]) -> bytes:
        vocabulary = self._compiled.vocabulary
        if not self._goes_to(path) or self._places[-1] == _ENDED:
            return bytes(vocabulary.num_mask_bytes)
        if self._places[-1] != _INSIDE:
            return self._compiled.masks_before[self._places[-1]]
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            self.is_lost = self._compiled.is_worn_out = True
            raise RuntimeError(f"a grammar cannot be followed: {self._matcher.get_error()}")
        mask = mask[: vocabulary.num_mask_bytes]
        return self._without_eos(mask) if self._eos_last and not self._matcher.is_stopped() else mask

    def _without_eos(self, mask: bytes) -> bytes:
        found = bytearray(mask)
        for token_id in self._compiled.vocabulary.eos_token_ids:
            found[token_id >> 3] &= ~(1 << (token_id & 7))
        return bytes(found)

    def _goes_to(self, path: Sequence[int]) -> bool:
        """Reads `path`, as far as the grammar allows it. Returns whether it does."""
        common = 0
        for ours, theirs in zip(self._path, path, strict=False):
            if ours != theirs:
                break
            common += 1
        if common < len(self._path):
            num_back = sum(self._num_consumed[common:])
            if num_back and not self._matcher.rollback(num_back):
                self.is_lost = True
                return False
            del self._path[common:], self._num_consumed[common:], self._places[common + 1 :]
        return all(self._read(token_id) for token_id in path[common:])

    def _read(self, token_id: int) -> bool:
        place = self._places[-1]
        consumed: Sequence[int] | None = ()
        if place == _INSIDE:
            if token_id in self._compiled.vocabulary.eos_token_ids:
                is_end = self._matcher.is_stopped() if self._eos_last else self._matcher.is_accepting()
                place, consumed = _ENDED, () if is_end else None
            else:
                consumed = (token_id,)
        elif place == _ENDED:
            consumed = None
        else:
            place, consumed = self._read_before(place, token_id)
        if consumed is None or not self._consumes(consumed):
            return False
        self._path.append(token_id)
        self._num_consumed.append(len(consumed))
        self._places.append(place)
        return True

    def _consumes(self, token_ids: Sequence[int]) -> bool:
        if not token_ids:
            return True
        num_consumed = self._matcher.try_consume_tokens(list(token_ids))
        if 0 < num_consumed < len(token_ids):
            self._matcher.rollback(num_consumed)
        return num_consumed == len(token_ids)

    def _read_before(self, place: int, token_id: int) -> tuple[int, Sequence[int] | None]:
        """The place after a token that comes before the grammar, and what of it is for the matcher."""
        vocabulary, tag = self._compiled.vocabulary, self._compiled.tag
        if tag is None or token_id in vocabulary.eos_token_ids:
            return place, None
        content = vocabulary.token_bytes[token_id]
        place, end = tag.follow(place, content)
        if end is None:
            return place, ()
        return _INSIDE, vocabulary.spelled(content[end:]) if end < len(content) else ()
