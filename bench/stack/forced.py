"""Forward passes that take a set time, and whose guesses are right as often as they are told to be.

A pass runs as ever, for the slots' sake, and must be faster than the set time; its logits are then replaced by the
oracle's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from bench.simulate.oracle import Oracle
from outrider.engine.engine import StepOutput
from outrider.engine.jobs import LINE_END, Job

_NEVER = -30.0
"""Logit of a token that is never chosen."""


class Forcing:
    """What becomes of forward passes; nothing until `force` is called."""

    def __init__(self, *, is_target: bool) -> None:
        self._is_target = is_target
        self._oracle: Oracle | None = None
        self._step_seconds = 0.0

    @property
    def is_active(self) -> bool:
        """Whether anything is forced."""
        return self._oracle is not None

    def force(self, settings: dict[str, Any] | None) -> None:
        """Takes `alpha`, `num_positions`, `width`, `seed` and `step_ms`; None ends it."""
        if settings is None:
            self._oracle = None
            return
        self._step_seconds = settings["step_ms"] / 1000.0
        self._oracle = Oracle(
            settings["alpha"], settings["num_positions"], width=settings["width"], seed=settings["seed"]
        )

    def apply(self, jobs: Sequence[Job], output: StepOutput, started: float) -> None:
        """What a pass for `jobs` computed is replaced, and it ends when it should: it began then, on the monotonic
        clock."""
        if self._oracle is None:
            return
        row = 0
        for job, num_rows in zip(jobs, output.num_rows, strict=True):
            if num_rows is not None:
                for position in _positions(job):
                    self._write(output.logits[row], position, self._oracle)
                    row += 1
        time.sleep(max(0.0, started + self._step_seconds - time.monotonic()))

    def _write(self, logits: torch.Tensor, position: int, oracle: Oracle) -> None:
        if self._is_target:
            logits.fill_(_NEVER)
            logits[oracle.token(position)] = 0.0
            return
        rest = max(1.0 - sum(map(math.exp, oracle.log_probs)), math.exp(_NEVER))
        logits.fill_(math.log(rest / logits.numel()))
        logits[torch.tensor(oracle.guesses(position))] = torch.tensor(oracle.log_probs, dtype=logits.dtype)


def _positions(job: Job) -> list[int]:
    """The position after each wanted row."""
    end = len(job.line)
    depths: list[int] = []
    for parent in job.parents:
        depths.append(1 if parent == LINE_END else depths[parent] + 1)
    return [end if index == LINE_END else end + depths[index] for index in job.wanted]
