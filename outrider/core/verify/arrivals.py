"""Arrivals: when one session's verdicts went and its drafts came, and what the waits for drafts learn from that."""

from __future__ import annotations

import math
from collections.abc import Sequence

from outrider.core.protocol.messages import DraftWindow
from outrider.core.protocol.naming import Grafted
from outrider.core.protocol.tree import SpeculationTree
from outrider.core.verify.draft_wait import DraftWait

_NO_DRAFTS_MAX = 16
"""Most of them that are remembered: drafts that come more than sixteen rounds late are of no use."""


class Arrivals:
    """Of one session. All times are in seconds, by any clock that only rises."""

    __slots__ = (
        "_deepest",
        "_draft_waits",
        "_lag",
        "_no_drafts_since",
        "cutoff",
        "draft_wait",
        "is_waiting",
        "last_verdict",
    )

    def __init__(self, shared: DraftWait) -> None:
        """What `shared` has learned in other sessions is believed at first, and it learns from this one."""
        self.draft_wait = DraftWait(shared)
        """The session's own."""
        self._draft_waits = self.draft_wait, shared
        self.last_verdict: float | None = None
        self.is_waiting = False
        """Whether the next round waits for drafts, of which none has come since that was decided."""
        self._no_drafts_since: dict[int, float] = {}
        """Roots that a verdict left with nothing below: position and time, until the first draft below one comes."""
        self._deepest: tuple[int, float] = (0, 0.0)
        """Position of the deepest node and when it came."""
        self._lag = math.inf
        """Between the latest window's departure, by its drafter's clock, and its arrival by ours."""
        self.cutoff = 0.0
        """When a window had to be sent to be there before the present round began, by its drafter's clock; 0 while
        unknown."""

    def begin(self, now: float, *, no_drafts: bool) -> None:
        """A round starts, with drafts or without. If it follows a wait that nothing came of, that is learned."""
        if self.is_waiting and self.last_verdict is not None:
            since = self.last_verdict if no_drafts else max(self.last_verdict, self._deepest[1])
            for draft_wait in self._draft_waits:
                draft_wait.observe_no_draft(now - since, at_hand=not no_drafts)
        self.is_waiting = False
        self.cutoff = max(now - self._lag, 0.0)

    def decided(self, tree: SpeculationTree, now: float) -> None:
        """A verdict went, and left `tree`."""
        self.last_verdict = now
        if tree.num_live:
            return
        position = tree.root.position
        self._no_drafts_since[position] = now
        if len(self._no_drafts_since) > _NO_DRAFTS_MAX:
            self._no_drafts_since.pop(next(iter(self._no_drafts_since)))
        self._deepest = position, now

    def grafted(self, window: DraftWindow, grafted: Grafted, now: float) -> None:
        """Drafts came: how long the first one after a bare root takes is learned, and each level after it."""
        if window.sent_ms > 0.0:
            self._lag = now - window.sent_ms / 1000.0
        if self._no_drafts_since:
            since_no_drafts = self._no_drafts_since.get(window.base)
            self._no_drafts_since = {root: since for root, since in self._no_drafts_since.items() if root > window.base}
            if since_no_drafts is not None:
                for draft_wait in self._draft_waits:
                    draft_wait.observe_first_draft(max(now - since_no_drafts, 0.0))
        if not grafted.added:
            return
        self.is_waiting = False
        levels = {node.position for node in grafted.added}
        position = max(levels)
        if position > self._deepest[0]:
            if window.draft_ms > 0.0:
                for draft_wait in self._draft_waits:
                    draft_wait.observe_levels(len(levels), window.draft_ms / 1000.0)
            self._deepest = position, now

    def observe_places(self, worths: Sequence[float]) -> None:
        """See `DraftWait.observe_places`."""
        for draft_wait in self._draft_waits:
            draft_wait.observe_places(worths)
