"""What a step scores where nothing is chosen: a rival's round has all drafts that its rule names."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.rivals.modes import PolicyName
from bench.rivals.ruled import policy_of
from bench.rivals.unchosen import all_that_may
from bench.simulate.memory import AmpleMemory
from bench.stack.worker import follow_verifier
from outrider.core.estimate.context_cost import ContextTime
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.protocol.messages import DraftWindow, VerifyOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import SpeculationTree
from outrider.core.schedule.policy import VerifyPolicy
from outrider.core.schedule.verify_scheduler import VerifyScheduler
from outrider.core.schedule.verify_step import VerifyOutcome, VerifyStep
from outrider.core.verify.selection import NOTHING_BESIDE, Beside, Candidates, most_probable
from tests.core.verify.test_selection import chain, check_subtree, curves, trees

MAX_POSITION = 7
UNLIKELY = -9.0
"""Logarithm of a chance for which no step is worth one token more."""


@given(st.lists(trees(), min_size=1, max_size=3), st.integers(0, 20), curves(), st.integers(0, 5))
def test_all_are_taken_up_to_each_limit_the_likeliest_first(
    forest: Sequence[SpeculationTree], limit: int, curve: StepCurve, num_beside: int
) -> None:
    candidates = [Candidates(tree, limit, MAX_POSITION) for tree in forest]
    selection = all_that_may(candidates, curve, Beside(num_beside))
    for tree, nodes in zip(forest, selection.nodes, strict=True):
        at_hand = [node for node in tree.live_nodes() if node.position <= MAX_POSITION]
        assert len(nodes) == min(limit, len(at_hand))
        check_subtree(tree, nodes)
        left_out = [node.path_log_prob for node in at_hand if node not in nodes]
        assert min([node.path_log_prob for node in nodes], default=0.0) >= max(left_out, default=-1e9)
    assert selection.probability_min == 0.0


def test_what_is_chosen_otherwise_is_less() -> None:
    """Else the tests here would hold of production's choice as well."""
    unlikely, flat = [Candidates(chain(0.01, 0.5), 2, 100)], StepCurve()
    flat.observe(1, 1.0)
    assert most_probable(unlikely, flat).nodes == [[]]
    assert len(all_that_may(unlikely, flat, NOTHING_BESIDE).nodes[0]) == 2


@pytest.mark.parametrize("name", [("synchronous", 3), ("padded", 3), ("amusd", 3), ("no_choice", 0)])
@pytest.mark.parametrize("num_cells_timed", [0, 1000])
def test_a_round_scores_all_drafts_whatever_they_cost_and_promise(name: tuple[str, int], num_cells_timed: int) -> None:
    """Steps are dear, over long lines too, and the drafts are hardly ever right."""
    policy = VerifyPolicy()
    follow_verifier(policy, policy_of(PolicyName(*name)).verify)
    in_context = [ContextTime(size, num_cells_timed * many, size * (1.0 + many)) for size in (1, 4) for many in (0, 1)]
    policy.estimates.restart([(1, 1.0), (2, 20.0), (4, 80.0)], in_context)
    scheduler: VerifyScheduler[str] = VerifyScheduler(
        AmpleMemory(), vocab_size=100, eos_token_ids=(), step_tokens_max=512, policy=policy
    )
    opening = VerifyOpen(
        session_id="s",
        token_ids=range(5),
        num_prompt_tokens=5,
        sampling=SamplingParams(),
        max_length=50,
        ignore_eos=True,
        max_draft_tokens=8,
    )
    scheduler.open("s", opening, 0.0)
    list(scheduler.admit(0.0))
    step = scheduler.plan(0.0)
    assert isinstance(step, VerifyStep)
    list(scheduler.settle(step, VerifyOutcome(0.0, 1.0, [[7]]), 1.0))
    list(scheduler.graft("s", DraftWindow(5, 1, [0, 1, 2], [7, 7, 7], [UNLIKELY] * 3), 1.0))
    step = scheduler.plan(1.0)
    assert isinstance(step, VerifyStep)
    assert [len(part.nodes) for part in step.parts] == [3]
