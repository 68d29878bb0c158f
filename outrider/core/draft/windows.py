"""Windows: which sessions of a drafter send what they have drafted, when it is worth a message.

Holding nodes back loses what the round would have accepted of them that begins meanwhile; sending them costs all three
services the handling of a message, and of each window in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice

MESSAGE_SECONDS = 0.2e-3
"""Processor time that a message with a window costs the three processes together, so that it must save as much: between
0.12 and 0.27 ms, as the machine is quiet or busy."""

WINDOW_SECONDS = 0.04e-3
"""The same of a window in a message that goes anyway: at sixteen sessions in one it is a fifth for each
(`python -m bench.micro.messages`)."""


def due(worths: Sequence[float]) -> list[int]:
    """Which of the windows should be sent now, in one message. Each would save its session so many seconds; see
    `DraftSession.window_worth`. For its handling all of the sessions wait."""
    num_sessions = len(worths)
    worth = [index for index, seconds in enumerate(worths) if seconds >= num_sessions * WINDOW_SECONDS]
    return worth if math.fsum(worths[index] for index in worth) >= num_sessions * MESSAGE_SECONDS else []


def num_levels_held(worths: Iterable[Sequence[float]], most: int) -> int:
    """How many levels, from 1 to `most`, may follow before one has to look again; `worths` are what the windows are
    worth after one level, after two, and so on.
    """
    num_levels = 1
    for each in islice(worths, most - 1):
        if due(each):
            break
        num_levels += 1
    return num_levels
