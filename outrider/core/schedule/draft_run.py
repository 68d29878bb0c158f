"""A run of the drafter: level after level that the device drafts by itself, as long as nothing arrives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple

from outrider.core.draft.outlook import Expansion, Outlook
from outrider.core.draft.session import choose_expansions
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.protocol.tree import Node
from outrider.core.protocol.validation import EXPANSIONS_MAX
from outrider.core.schedule.admission import Seated
from outrider.core.schedule.draft_step import Drafting
from outrider.core.schedule.step import KeyT

LEVELS_MAX = 16
"""Most levels of a run. What begins and ends it costs less than one level, so that more would save little."""

BURST_SHARE = 0.5
"""For how much of a verify step a run may keep what it drafts to itself."""

CELLS_PER_LEVEL = 8
"""Nodes of a session for which a run takes memory, for each level, on the average: more than levels have expanded where
one session had the device for itself. A run ends where it is used up."""

OPEN_NODES_MAX = EXPANSIONS_MAX
"""Nodes of a session among which a run begins to choose: as many as a level may expand."""


class RunPart(NamedTuple, Generic[KeyT]):
    """One session's part in a run."""

    seated: Seated[Drafting[KeyT]]
    outlook: Outlook
    num_nodes_max: int
    """Most nodes that the run expands of it."""

    @property
    def session(self) -> Drafting[KeyT]:
        """Whose part it is."""
        return self.seated.session

    @property
    def slot(self) -> int:
        """The session's slot."""
        return self.seated.slot

    @property
    def nodes(self) -> Sequence[Node]:
        """What may be expanded first."""
        return self.outlook.nodes


class Level(NamedTuple):
    """What a level of a run came to."""

    num_nodes: int
    seconds: float


class DraftRun(Generic[KeyT]):
    """What the device is to do: level after level, of which each expands what a step would.

    It ends before a level that would expand nothing, after LEVELS_MAX of them, and may end after any when there is news
    for the scheduler.
    """

    def __init__(self, parts: Sequence[RunPart[KeyT]], num_levels: int, num_levels_max: int) -> None:
        self.parts = parts
        self.num_levels = num_levels
        """Most levels of a burst: after it the scheduler is to be told (`settle_run`), so that it can send."""
        self.num_levels_max = num_levels_max
        """Most levels in all."""
        self._opened = [node for part in parts for node in part.nodes]
        self._expanded: list[Node | None] = []

    def choose(self, curve: StepCurve) -> list[list[Node]]:
        """The nodes of each part that the next level expands; each must be given to its session's `expand`."""
        return choose_expansions([part.session.state for part in self.parts], curve)

    def grow(self, expansions: Iterable[Expansion]) -> None:
        """Adds what a device has drafted since the last time that chose the nodes by itself."""
        for session, origin, token_id, token_ids, margins in expansions:
            node = self._opened[-1 - origin] if origin < 0 else self._child(origin, token_id)
            self._expanded.append(node)
            if node is not None:
                self.parts[session].session.state.expand_untaken(node, token_ids, margins)

    def _child(self, expansion: int, token_id: int) -> Node | None:
        parent = self._expanded[expansion]
        return parent and parent.children.get(token_id)


def compose_run(
    sessions: Iterable[Seated[Drafting[KeyT]]], curve: StepCurve, num_levels_max: int
) -> DraftRun[KeyT] | None:
    """A run over all of `sessions` that have something to expand, whose lines are fed; None if a step is better.

    A step is, for all, if for one of them more than a draft model's word counts (a grammar, penalties, a bias), or if
    its line's end was not expanded yet.
    """
    parts: list[RunPart[KeyT]] = []
    verify_seconds: list[float] = []
    for seated in sessions:
        state = seated.session.state
        if state.best() is None:
            continue
        outlook = state.outlook(OPEN_NODES_MAX)
        if outlook is None or seated.session.opening.sampling.logit_bias:
            return None
        parts.append(RunPart(seated, outlook, len(outlook.nodes) + outlook.credit))
        verify_seconds.append(state.verify_seconds)
    if not parts:
        return None
    level_seconds = curve.seconds(2 * len(parts))
    num_levels = int(BURST_SHARE * min(verify_seconds) / level_seconds) if level_seconds > 0.0 else 1
    most = CELLS_PER_LEVEL * num_levels_max
    parts = [part._replace(num_nodes_max=min(part.num_nodes_max, most)) for part in parts]
    return DraftRun(parts, min(max(num_levels, 1), num_levels_max), num_levels_max)
