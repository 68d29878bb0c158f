"""The line, a sequence's token ids: prompt plus committed tokens at absolute positions, never revised."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.core.protocol.errors import ProtocolViolationError


class Line:
    """The canonical sequence of one session. It only ever grows at its end."""

    __slots__ = ("num_prompt_tokens", "token_ids")

    def __init__(self, token_ids: Sequence[int], num_prompt_tokens: int | None = None) -> None:
        """Starts from `token_ids`, the first `num_prompt_tokens` of which (default: all) are the prompt."""
        self.token_ids = list(token_ids)
        self.num_prompt_tokens = len(self.token_ids) if num_prompt_tokens is None else num_prompt_tokens

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_generated_tokens(self) -> int:
        """How many tokens follow the prompt."""
        return len(self.token_ids) - self.num_prompt_tokens

    def commit(self, position: int, token_ids: Sequence[int]) -> Sequence[int]:
        """Commits `token_ids` at absolute `position` and returns those that are new.

        Applying a commit twice changes nothing. Raises ProtocolViolationError for a gap or a contradiction.
        """
        num_known = len(self.token_ids) - position
        if num_known < 0:
            raise ProtocolViolationError(
                f"commit at position {position} leaves a gap: the line ends at position {len(self.token_ids) - 1}"
            )
        num_known = min(num_known, len(token_ids))
        if self.token_ids[position : position + num_known] != list(token_ids[:num_known]):
            raise ProtocolViolationError(f"commit at position {position} contradicts tokens that are committed there")
        new = token_ids[num_known:]
        self.token_ids.extend(new)
        return new
