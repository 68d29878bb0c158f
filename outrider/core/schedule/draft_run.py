"""A run of the drafter: level after level that the device drafts by itself, as long as nothing arrives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple

from outrider.core.draft.expansions import choose_expansions
from outrider.core.draft.outlook import Expansion, Outlook
from outrider.core.draft.session import DraftSession
from outrider.core.draft.windows import num_levels_held
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.protocol.tree import Node
from outrider.core.protocol.validation import EXPANSIONS_MAX
from outrider.core.schedule.admission import Seated
from outrider.core.schedule.draft_step import Drafting
from outrider.core.schedule.step import KeyT

LEVELS_MAX = 16
"""Most levels of a run. What begins and ends it costs less than one level, so that more would save little."""

CELLS_PER_LEVEL = 4
"""Nodes of a session for which a run takes memory, for each level, on the average: levels of the bundled draft expand
two or three where one session has the device for itself. Who has used up its share has no more part in the run."""

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


class Burst(NamedTuple):
    """How many levels may follow before the scheduler is told what came out (`DraftScheduler.settle_run`)."""

    num_levels: int
    seconds: float
    """None begins later than so long after the first one: levels may be wider than was foreseen, and take longer."""


class DraftRun(Generic[KeyT]):
    """What the device is to do: level after level, of which each expands what a step would.

    It ends before a level that would expand nothing, after LEVELS_MAX of them, and may end after any when there is news
    for the scheduler.
    """

    def __init__(
        self,
        parts: Sequence[RunPart[KeyT]],
        beside: Sequence[DraftSession],
        curve: StepCurve,
        num_levels_max: int,
        *,
        in_turn: bool = False,
    ) -> None:
        """Who is `beside` expands nothing, but may have something to send; `in_turn` nothing is sent before the end."""
        self.parts = parts
        self.num_levels_max = num_levels_max
        """Most levels in all."""
        self._states = [part.session.state for part in parts]
        self._senders = [*self._states, *beside]
        self._in_turn = in_turn
        self._curve = curve
        self._num_nodes = len(parts)
        """Of the latest level."""
        self._opened = [node for part in parts for node in part.nodes]
        self._expanded: list[Node | None] = []

    def burst(self, now: float, most: int) -> Burst:
        """Up to `most` levels, until the scheduler would send a window."""
        if self._in_turn:
            return Burst(most, math.inf)
        num_nodes = -(-self._num_nodes // len(self.parts))
        seconds = self._curve.seconds(self._num_nodes)
        worths = [state.window_worths(now, seconds, num_nodes) for state in self._senders]
        num_levels = num_levels_held(zip(*worths, strict=True), most)
        return Burst(num_levels, (num_levels - 0.5) * seconds)

    def settle(self, levels: Sequence[Level]) -> None:
        """Such levels came out."""
        self._num_nodes = levels[-1].num_nodes

    def choose(self) -> list[list[Node]]:
        """The nodes of each part that the next level expands; each must be given to its session's `expand`."""
        return choose_expansions(self._states, self._curve)

    def grow(self, expansions: Iterable[Expansion]) -> None:
        """Adds what a device has drafted since the last time that chose the nodes by itself."""
        for session, origin, token_id, token_ids, bins in expansions:
            node = self._opened[-1 - origin] if origin < 0 else self._child(origin, token_id)
            self._expanded.append(node)
            if node is not None:
                self._states[session].graft(node, list(zip(token_ids, bins, strict=True)))

    def _child(self, expansion: int, token_id: int) -> Node | None:
        parent = self._expanded[expansion]
        return parent and parent.children.get(token_id)


def compose_run(
    sessions: Iterable[Seated[Drafting[KeyT]]],
    curve: StepCurve,
    num_levels_max: int,
    *,
    expands_lines: bool,
    in_turn: bool = False,
) -> DraftRun[KeyT] | None:
    """A run over all of `sessions` that have something to expand, whose lines are fed, or all but their last tokens;
    None if a step is better.

    A step is, for all, if for one of them more than a draft model's word counts (a grammar, penalties, a bias), or if
    its line's end was not expanded yet and the device does not begin there.
    """
    parts: list[RunPart[KeyT]] = []
    beside: list[DraftSession] = []
    for seated in sessions:
        state = seated.session.state
        if state.best() is None:
            beside.append(state)
            continue
        outlook = state.outlook(OPEN_NODES_MAX)
        if outlook is None or seated.session.opening.sampling.logit_bias:
            return None
        if outlook.root.proposals is None and not expands_lines:
            return None
        parts.append(RunPart(seated, outlook, len(outlook.nodes) + outlook.credit))
    if not parts:
        return None
    most = CELLS_PER_LEVEL * LEVELS_MAX
    parts = [part._replace(num_nodes_max=min(part.num_nodes_max, most)) for part in parts]
    return DraftRun(parts, beside, curve, num_levels_max, in_turn=in_turn)
