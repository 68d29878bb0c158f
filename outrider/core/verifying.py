"""A verify session: which guesses to score next, and what the target's choices decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from outrider.core.line import Line
from outrider.core.messages import FinishReason, VerifyOpen, Window
from outrider.core.naming import Grafted, Inbound
from outrider.core.selection import most_probable
from outrider.core.tree import Node, SpeculationTree


class Decision(NamedTuple):
    """What one round committed."""

    position: int
    token_ids: list[int]
    num_accepted: int
    rows: list[int]
    """For each committed token the row of `choices` that chose it."""
    bonus: bool
    """Whether the next token follows a path that was accepted to its end, rather than a rejection."""
    finish_reason: FinishReason | None
    late_guess: bool | None = None
    """Whether the next token was among the guesses for its place that came too late to be scored; None without any."""


class VerifySession:
    """One session's line and tree as the verifier sees them."""

    def __init__(
        self, opening: VerifyOpen, *, vocab_size: int, eos_token_ids: Sequence[int], max_live_nodes: int
    ) -> None:
        self.line = Line(opening.token_ids, opening.num_prompt_tokens)
        self.tree = SpeculationTree(len(self.line) - 1, self.line.token_ids[-1])
        self._inbound = Inbound(vocab_size=vocab_size, max_live_nodes=max_live_nodes)
        self._max_length = opening.max_length
        self._max_draft_tokens = opening.max_draft_tokens
        self._stop_token_ids = opening.stop_token_ids
        self._eos_token_ids = frozenset(() if opening.ignore_eos else eos_token_ids)

    def graft(self, window: Window) -> Grafted:
        """Adds draft nodes. Raises ProtocolViolationError."""
        return self._inbound.graft(self.tree, window)

    def choose(self) -> list[Node]:
        """The draft tokens to score in the next round, parents before children; maybe none.

        A node at the line's last position is left out: the token there comes with its parent's row.
        """
        return most_probable(self.tree, self._max_draft_tokens, self._max_length - 2)

    @property
    def num_ready_levels(self) -> int:
        """How deep the most probable path at hand goes, in tokens, up to the most that one round verifies."""
        depth = 0
        node = self.tree.root
        while node.children and depth < self._max_draft_tokens:
            node = max(node.children.values(), key=lambda child: child.log_prob)
            depth += 1
        return depth

    def decide(self, nodes: Sequence[Node], choices: Sequence[int]) -> Decision:
        """Accepts the path of `nodes` that the target chose, adds the next token, and commits both.

        `choices[0]` is the target's token after the root, `choices[i + 1]` the one after `nodes[i]`.
        """
        row_of = {id(self.tree.root): 0} | {id(node): row for row, node in enumerate(nodes, 1)}
        position = len(self.line)
        token_ids: list[int] = []
        rows: list[int] = []
        reason: FinishReason | None = None
        node: Node | None = self.tree.root
        last = node
        bonus = False
        while node is not None and reason is None and (row := row_of.get(id(node))) is not None:
            token_id = choices[row]
            token_ids.append(token_id)
            rows.append(row)
            reason = self._finish_reason(token_id, position + len(token_ids))
            bonus = bool(nodes) and not any(id(child) in row_of for child in node.children.values())
            last, node = node, node.children.get(token_id)
        num_accepted = len(token_ids) - (node is None or id(node) not in row_of)
        late_guess = self._late_guess(last, row_of, token_ids[-1]) if num_accepted < len(token_ids) else None
        self.line.commit(position, token_ids)
        self.tree.commit(token_ids)
        return Decision(position, token_ids, num_accepted, rows, bonus, reason, late_guess)

    @staticmethod
    def _late_guess(last: Node, row_of: Mapping[int, int], next_token_id: int) -> bool | None:
        late = [token_id for token_id, child in last.children.items() if id(child) not in row_of]
        return next_token_id in late if late else None

    def _finish_reason(self, token_id: int, length: int) -> FinishReason | None:
        if token_id in self._eos_token_ids:
            return FinishReason.EOS
        if token_id in self._stop_token_ids:
            return FinishReason.STOP_TOKEN
        if length >= self._max_length:
            return FinishReason.LENGTH
        return None
