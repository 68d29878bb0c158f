"""What one tenant's sessions were answered of late, by the tokens that stand before each place: a suffix index.

An agent says again what it has said, and an edited file comes back nearly whole. The index keeps the newest tokens of
all answers and finds the place behind whose tokens a line's last ones agree furthest. SuffixDecoding (arXiv 2411.04975)
has a suffix tree for that; a hash of the last few tokens and a look back find the same place where the match is long
enough to be worth anything.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple

from outrider.core.propose.ngram import extend

RECENT_TOKENS_MAX = 32_768
"""Tokens of answers that are kept for one tenant, the newest: some 7 MB."""

RECENT_TENANTS_MAX = 32
"""Tenants whose answers are kept, those that opened a session last: some 220 MB if all of them have said that much."""

READ_TOKENS_MAX = 256
"""Most tokens of answers that are taken in before one round, in some half a millisecond."""

MATCH_TOKENS = 4
"""Last tokens that must agree for a place to be found: as many as a packed context holds."""

_MATCH_TOKENS_MAX = 32
"""How far back agreement is followed: what agrees so far is as good as certain to be the same passage."""

_OCCURRENCES_MAX = 8
"""Most places that are compared, newest first, so that frequent contexts cost no more than others."""

_END = 0xFFFFFFFF
"""Stands behind the last token of each answer, and is no token."""

_NOWHERE = -1
"""Stands for the context of what begins an answer, and of its end: neither is found."""


class Match(NamedTuple):
    """A place in an answer."""

    position: int
    """Of the token that comes next there."""
    num_agreed: int
    """How many tokens before it agree with the line; minus those that do not, where the line goes its own way."""


class RecentAnswers:
    """A ring of tokens. Token ids below VOCAB_SIZE_MAX are the caller's promise."""

    __slots__ = (
        "_capacity",
        "_context",
        "_contexts",
        "_length",
        "_newest",
        "_num_tokens",
        "_previous",
        "_token_ids",
        "_unread",
    )

    def __init__(self, capacity: int = RECENT_TOKENS_MAX) -> None:
        """Keeps `capacity` tokens, with one more for each answer's end."""
        self._capacity = capacity
        self._num_tokens = 0
        self._token_ids = array("I")
        self._contexts: list[int] = []
        """For each position, modulo the capacity, the packed tokens before it, or _NOWHERE."""
        self._previous = array("q")
        """For each position the one that followed the same context before, or -1."""
        self._newest: dict[int, int] = {}
        """For each context the position that followed it last."""
        self._context = 0
        self._length = 0
        """Of the answer that is read, so far."""
        self._unread: deque[Sequence[int]] = deque()

    def __len__(self) -> int:
        """How many tokens are kept, ends of answers among them."""
        return min(self._num_tokens, self._capacity)

    def add(self, token_ids: Sequence[int]) -> None:
        """An answer has ended. It is found once it is read, and is the caller's no more."""
        if len(token_ids) <= MATCH_TOKENS:
            return
        self._unread.append([*token_ids[-self._capacity + 1 :], _END])
        while sum(map(len, self._unread)) > self._capacity:
            self._unread.popleft()

    def read(self) -> None:
        """Takes in some of what was added, oldest first."""
        room = READ_TOKENS_MAX
        while self._unread and room:
            token_ids = self._unread.popleft()
            for token_id in token_ids[:room]:
                self._append(token_id)
            if len(token_ids) > room:
                self._unread.appendleft(token_ids[room:])
            room -= min(room, len(token_ids))

    def token(self, position: int) -> int | None:
        """The token at `position`; None if an answer ends there, or it is forgotten."""
        if not max(self._num_tokens - self._capacity, 0) <= position < self._num_tokens:
            return None
        token_id = self._token_ids[position % self._capacity]
        return None if token_id == _END else token_id

    def find(self, last_tokens: Sequence[int]) -> Match | None:
        """The place before which the longest part of `last_tokens` stands, oldest token first; of equals the newest."""
        context = 0
        for token_id in last_tokens[-MATCH_TOKENS:]:
            context = extend(context, token_id)
        best: Match | None = None
        position = self._newest.get(context, -1) if len(last_tokens) >= MATCH_TOKENS else -1
        for _ in range(_OCCURRENCES_MAX):
            if position < max(self._num_tokens - self._capacity, 0):
                break
            num_agreed = MATCH_TOKENS
            most = min(len(last_tokens), _MATCH_TOKENS_MAX)
            while num_agreed < most and self.token(position - num_agreed - 1) == last_tokens[-num_agreed - 1]:
                num_agreed += 1
            if best is None or num_agreed > best.num_agreed:
                best = Match(position, num_agreed)
            position = self._previous[position % self._capacity]
        return best

    def _append(self, token_id: int) -> None:
        position = self._num_tokens
        index = position % self._capacity
        is_end = token_id == _END
        context = _NOWHERE if is_end or self._length < MATCH_TOKENS else self._context
        if position < self._capacity:
            self._token_ids.append(token_id)
            self._contexts.append(context)
            self._previous.append(-1)
        else:
            forgotten = self._contexts[index]
            if self._newest.get(forgotten) == position - self._capacity:
                del self._newest[forgotten]
            self._token_ids[index] = token_id
            self._contexts[index] = context
        if context != _NOWHERE:
            self._previous[index] = self._newest.get(context, -1)
            self._newest[context] = position
        self._context, self._length = (0, 0) if is_end else (extend(self._context, token_id), self._length + 1)
        self._num_tokens = position + 1


class RecentAnswersByTenant:
    """The recent answers of each tenant, which no other tenant's sessions are shown."""

    def __init__(self, *, has_common: bool) -> None:
        """`has_common`: sessions without a salt share theirs; else they have none."""
        self._has_common = has_common
        self._answers: OrderedDict[str, RecentAnswers] = OrderedDict()

    def of(self, cache_salt: str) -> RecentAnswers | None:
        """Those of the tenant with that salt; None if there are none to be."""
        if not cache_salt and not self._has_common:
            return None
        answers = self._answers.setdefault(cache_salt, RecentAnswers())
        self._answers.move_to_end(cache_salt)
        if len(self._answers) > RECENT_TENANTS_MAX:
            self._answers.popitem(last=False)
        return answers
