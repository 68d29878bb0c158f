"""Measured workers: what a mode changes, and what it leaves."""

from __future__ import annotations

from bench.rivals.modes import PolicyName
from bench.stack.worker import Measured, follow_drafter
from outrider.core.schedule.policy import DraftPolicy


def test_a_parallel_draft_model_drafts_in_parallel_in_modes_of_ours() -> None:
    measured, own, modes = (
        Measured(is_target=False),
        DraftPolicy(),
        (None, PolicyName("amusd", 2), PolicyName("no_ngram")),
    )

    def places() -> list[int]:
        found: list[int] = []
        for mode in modes:
            follow_drafter(own, measured.policy({"name": f"{mode} {measured.parallel}", "policy": mode}).draft)
            found.append(own.estimates.num_positions)
        return found

    assert places() == [1, 1, 1]
    measured.parallel = (7, 5)
    assert places() == [5, 1, 5]
