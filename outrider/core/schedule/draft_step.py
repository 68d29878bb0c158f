"""A step of the drafter: which nodes of whose trees it expands, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol

from outrider.core.draft.session import DraftSession
from outrider.core.protocol.messages import DraftOpen, DraftWindow
from outrider.core.protocol.tree import Node
from outrider.core.schedule.admission import Seated
from outrider.core.schedule.step import KeyT
from outrider.core.schedule.subtree import Subtree


class Part(Protocol):
    """A session's part in what the device does."""

    @property
    def nodes(self) -> Sequence[Node]:
        """What is expanded, or may be; nothing while the line is prefilled."""
        ...


class Drafting(Generic[KeyT]):
    """What the scheduler knows of one session."""

    def __init__(self, key: KeyT, opening: DraftOpen, state: DraftSession) -> None:
        self.key = key
        self.opening = opening
        self.state = state
        self.token_ids = state.line.token_ids
        self.part: Part | None = None
        """Its part in the present step or run, or in the one that has just ended."""
        self.last_step = 0
        """Number of the last step that expanded any of its nodes."""
        self.is_finishing = False
        """Whether no more commits will come: the session ends when there is nothing left to draft."""
        self.draft_seconds = 0.0
        """Time in steps that drafted, since the last window."""
        self.drafting_since = 0.0
        """Start of the first of them."""

    def draft_for(self, started: float, ended: float) -> None:
        """It had a part in what the device did from `started` to `ended`."""
        if self.draft_seconds == 0.0:
            self.drafting_since = started
        self.draft_seconds += ended - started


class DraftPart(NamedTuple, Generic[KeyT]):
    """One session's part in a step."""

    seated: Seated[Drafting[KeyT]]
    nodes: list[Node]
    """What is expanded; nothing while the line is prefilled. For each row of the step's outcome its node: first those
    that are fed themselves, then, once for each, those that have mask tokens below them."""
    subtree: Subtree
    """Their paths from the end of the line, and the mask tokens below them."""
    num_line_tokens: int
    """How much of the line may be fed."""

    @property
    def session(self) -> Drafting[KeyT]:
        """Whose part it is."""
        return self.seated.session

    @property
    def slot(self) -> int:
        """The session's slot."""
        return self.seated.slot


class DraftStep(NamedTuple, Generic[KeyT]):
    """What the device is to do: one forward pass, and proposals of what follows each node and each mask token."""

    parts: list[DraftPart[KeyT]]
    """In the order in which their lines are fed: who expands before who prefills."""
    started: float
    num_held: dict[Seated[Drafting[KeyT]], int]
    """Tokens that the slots of those who prefill held before."""

    @property
    def num_line_tokens(self) -> int:
        """How many tokens of lines may be fed altogether."""
        return sum(part.num_line_tokens for part in self.parts)


Proposal = tuple[Sequence[int], Sequence[float]]
"""Token ids below a node, best first, and for each how sure that is; see `DraftSession.expand`."""

DraftOutcome = Sequence[Sequence[Proposal] | None]
"""What came out of a step: for each part the proposals of its rows, or None if its line is not fed yet."""


class Drafted(NamedTuple):
    """A window to send."""

    window: DraftWindow
    since: float
    """Start of the first step that drafted of it."""
