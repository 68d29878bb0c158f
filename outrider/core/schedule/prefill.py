"""How much of the prompts one step reads while other sessions are decoding, and whose."""

from __future__ import annotations

import math
from collections.abc import Sequence

from outrider.core.estimate.step_curve import StepCurve
from outrider.core.schedule.queue import Priority

STEP_STRETCH_MIN = 2.0
STEP_STRETCH_MAX = 8.0
"""A step that also reads prompts takes at most so many times what it would take without them: who decodes waits that
much longer for the next token. It is the device's time by heads: with as many who wait for their first token as decode,
or fewer, half of it goes into prompts, and with three times as many three quarters. By half of it for any number, 16 of
64 clients decoded in small steps while the others waited, for seconds."""

PREFILL_TOKENS_MIN = 4
"""Fewest tokens of prompts that a step reads, however dear they are: a prompt of 4096 is read within 1024 steps."""

PASSED_MAX = 3
"""In how many steps in a row shorter lines may be read before the one that is first in turn. Nobody's line then takes
more than four times as many steps as by strict turns, and short lines take a third longer than without this bound."""


def prefill_budget(curve: StepCurve, num_rows: int, most: int, waiting: float = 1.0) -> int:
    """How many tokens of prompts fit into a step beside `num_rows`, the last tokens of sessions that decode and the
    guesses that a step without prompts would score; at most `most`. For each session that decodes, `waiting` others
    wait for their prompts to be read.

    Where sessions decode that are not in this step, they wait for its end: pass 1 row then.
    """
    if not num_rows:
        return most
    stretch = min(max(1.0 + waiting, STEP_STRETCH_MIN), STEP_STRETCH_MAX)
    fits = curve.largest(stretch * curve.seconds(num_rows))
    return most if fits is None else min(max(fits - num_rows, PREFILL_TOKENS_MIN), most)


class PrefillScheduler:
    """Deals out what the steps of one worker read among those whose lines are to be read.

    Who has the least left to read goes first, which makes the mean time to a first token the shortest; those with a
    deadline come before those without. So that nobody waits for ever, the first in turn goes first after at most
    `PASSED_MAX` steps in which it has not.
    """

    def __init__(self) -> None:
        self._num_passed = 0
        """Steps in a row in which somebody went before the first in turn."""

    def assign(
        self, priorities: Sequence[Priority], num_uncomputed: Sequence[int], budget: int
    ) -> list[tuple[int, int]]:
        """Deals out `budget` tokens among those who stand in turn and have so many left to read each.

        Returns who reads how many, as (index, number of tokens). The first of them get all that they have left, and
        those for whom nothing is left are left out.
        """
        order = sorted(
            range(len(priorities)), key=lambda index: (math.isinf(priorities[index].deadline), num_uncomputed[index])
        )
        if self._num_passed >= PASSED_MAX:
            order.sort(key=bool)  # the first in turn has index 0
        self._num_passed = self._num_passed + 1 if any(order[:1]) else 0
        assigned: list[tuple[int, int]] = []
        for index in order:
            if budget <= 0:
                break
            assigned.append((index, min(num_uncomputed[index], budget)))
            budget -= num_uncomputed[index]
        return assigned
