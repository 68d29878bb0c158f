"""How much of the prompts one step reads while other sessions are decoding."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.core.step_curve import StepCurve

STEP_STRETCH_MAX = 2.0
"""A step that also reads prompts takes at most this many times what it would take without them: who decodes waits that
much longer for the next token. Half of the device's time then goes into prompts."""

READ_TOKENS_MIN = 4
"""Fewest tokens of prompts that a step reads, however dear they are: a prompt of 4096 is read within 1024 steps."""


def read_budget(curve: StepCurve, num_rows: int, most: int) -> int:
    """How many tokens of prompts fit into a step beside `num_rows`, the last tokens of sessions that decode and the
    guesses that a step without prompts would score; at most `most`.

    Where sessions decode that are not in this step, they wait for its end: pass 1 then.
    """
    if not num_rows:
        return most
    fits = curve.largest(STEP_STRETCH_MAX * curve.seconds(num_rows))
    return most if fits is None else min(max(fits - num_rows, READ_TOKENS_MIN), most)


def grants(num_unread: Sequence[int], budget: int) -> list[int]:
    """How much of its rest each gets, in the order given, until `budget` is spent."""
    granted: list[int] = []
    for unread in num_unread:
        granted.append(min(unread, budget))
        budget -= granted[-1]
    return granted
