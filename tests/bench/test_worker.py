"""Measured workers: what a mode changes, and what it leaves."""

from __future__ import annotations

import pytest

from bench.rivals.modes import PolicyName
from bench.stack.worker import Measured, follow
from outrider.core.schedule.policy import DraftPolicy


@pytest.mark.parametrize("policy", [None, PolicyName("synchronous", 4)])
def test_a_parallel_draft_model_drafts_in_parallel_in_every_mode(policy: PolicyName | None) -> None:
    own, measured = DraftPolicy(), Measured(is_target=False)
    follow(own, measured.policy({"name": "before", "policy": policy}, own).draft)
    assert own.estimates.num_positions == 1
    own.draft_in_parallel(7, 5)
    for name in ("one", "another", "one"):
        follow(own, measured.policy({"name": name, "policy": policy}, own).draft)
        assert (own.mask_token_id, own.estimates.num_positions) == (7, 5)
