"""Expansions: the nodes of all sessions that a level should expand."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from outrider.core.draft.session import DraftSession
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.protocol.tree import Node
from outrider.core.protocol.validation import EXPANSIONS_MAX


def choose_expansions(sessions: Sequence[DraftSession], curve: StepCurve, num_beside: int = 0) -> list[list[Node]]:
    """The nodes of each session that the next step should expand: those of the highest chance over all sessions.

    Of those the first n, so that the chance of what is expanded per second, (sum p) / t(num_beside + n), is greatest;
    `num_beside` tokens of prompts are in the step as well. At most EXPANSIONS_MAX, or one for each session. Of equal
    chances the first session's comes first.
    """
    heap = [(-best, index) for index, session in enumerate(sessions) if (best := session.best()) is not None]
    heapq.heapify(heap)
    most = max(EXPANSIONS_MAX, len(sessions))
    taken: list[tuple[int, Node]] = []
    total = 0.0
    best_num, best_total, best_seconds = 0, 0.0, 1.0
    while heap and len(taken) < most:
        cost, index = heap[0]
        session = sessions[index]
        taken.append((index, session.take()))
        total += math.exp(-cost)
        seconds = curve.seconds(num_beside + len(taken))
        if total * best_seconds >= best_total * seconds:
            best_num, best_total, best_seconds = len(taken), total, seconds
        best = session.best()
        if best is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (-best, index))
    chosen: list[list[Node]] = [[] for _ in sessions]
    for index, node in taken[:best_num]:
        chosen[index].append(node)
    for index, node in taken[best_num:]:
        sessions[index].postpone([node])
    return chosen
