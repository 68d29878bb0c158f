"""Tag: the text after which a grammar begins, looked for a token at a time.

The search is that of Knuth, Morris and Pratt ("Fast pattern matching in strings", 1977): its state is how much of the
tag the text ends with, so that a tag is found wherever tokens cut it, and a path is taken back by keeping its states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class Tag:
    """A search for the first appearance of some bytes. A state is the number of them that the text ends with."""

    def __init__(self, content: bytes) -> None:
        """`content` is not empty."""
        self.content = content
        self._borders = [0]
        """For each state from 1 on the next shorter beginning of the tag that the text ends with, too."""
        for byte in content[1:]:
            self._borders.append(self._next(self._borders[-1], byte))

    def follow(self, state: int, content: bytes) -> tuple[int, int | None]:
        """The state after `content`, and where in it the tag ended, if it did: the search is over there."""
        for index, byte in enumerate(content, 1):
            state = self._next(state, byte)
            if state == len(self.content):
                return state, index
        return state, None

    def cut_by(self, tokens: Sequence[bytes]) -> Iterator[tuple[int, int, bytes]]:
        """Each state and token id that end the tag and go on after it, with what comes then."""
        tag = self.content
        for token_id, content in enumerate(tokens):
            if tag[-1] not in content[:-1]:
                continue
            ends = (end for end in range(1, len(content)) if content[end - 1] == tag[-1])
            if not any(tag.endswith(content[:end]) or content.endswith(tag, 0, end) for end in ends):
                continue
            for state in range(len(tag)):
                _, end = self.follow(state, content)
                if end is not None and end < len(content):
                    yield state, token_id, content[end:]

    def _next(self, state: int, byte: int) -> int:
        while state and self.content[state] != byte:
            state = self._borders[state - 1]
        return state + 1 if self.content[state] == byte else 0
