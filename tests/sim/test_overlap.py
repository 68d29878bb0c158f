"""On a virtual clock with made-up step times: what overlap, trees and waiting bring, and that they never cost much."""

from __future__ import annotations

import pytest

from bench.rivals.modes import PolicyName
from bench.rivals.ruled import policy_of
from outrider.core.protocol.messages import FinishReason

from .toys import ToyTarget
from .virtual_pair import PROMPT, VOCAB_SIZE, Circumstances, Outcome, flat, run_pair, sloped

TREE_OF_FOUR = (0.8, 0.93, 0.96, 0.98)
"""A draft whose first guess is right 0.8 of the time, and that has the right one among four 0.98 of the time."""

DEMONSTRATION = (0.55, 0.67, 0.75, 0.8)
"""About what the demonstration pair's draft is like."""


HOPS = (0.0, 0.05, 0.25, 1.0)

EVERY_PAIR = [
    (alpha, draft_step, HOPS[(row + column) % len(HOPS)])
    for row, alpha in enumerate((0.0, 0.2, 0.5, 0.8, 0.95))
    for column, draft_step in enumerate((0.02, 0.35, 1.0, 4.0))
]
"""Acceptances, draft steps and hops: any two of them meet."""


def run(**circumstances: object) -> Outcome:
    return run_pair(Circumstances(**circumstances))  # type: ignore[arg-type]


def best_in_turn(alpha: float, draft_step: float) -> float:
    """Seconds per token of drafting and verifying in turn with the best lookahead, a verify step taking one second.

    Leviathan, Kalman, Matias, arXiv 2211.17192, equation 1.
    """
    return min(
        (lookahead * draft_step + 1.0) * (1.0 - alpha) / (1.0 - alpha ** (lookahead + 1)) for lookahead in range(1, 33)
    )


@pytest.mark.parametrize(
    ("draft_step", "verify_step", "max_draft_tokens"), [(1.0, 4.0, 3), (2.0, 8.0, 8), (1.0, 10.0, 4), (1.0, 6.0, 2)]
)
def test_with_a_perfect_draft_the_slower_device_alone_sets_the_pace(
    draft_step: float, verify_step: float, max_draft_tokens: int
) -> None:
    outcome = run(
        draft_step=flat(draft_step),
        verify_step=flat(verify_step),
        coverage=(1.0,),
        tree_width=1,
        max_draft_tokens=max_draft_tokens,
    )
    overlapped = max(draft_step, verify_step / (max_draft_tokens + 1))
    synchronous = (max_draft_tokens * draft_step + verify_step) / (max_draft_tokens + 1)
    assert outcome.seconds_per_token == pytest.approx(overlapped, rel=0.1)
    assert outcome.seconds_per_token < 0.9 * synchronous


def test_the_tokens_are_those_of_the_target_alone() -> None:
    circumstances = Circumstances(
        draft_step=flat(0.3), verify_step=sloped(1.0, 0.03), coverage=DEMONSTRATION, hop=0.1, num_tokens=300
    )
    expected, reason = ToyTarget(circumstances.seed, VOCAB_SIZE).decode_alone(
        PROMPT, len(PROMPT) + 300, frozenset(), True
    )
    assert (run_pair(circumstances).token_ids, reason) == (expected, FinishReason.LENGTH)


def test_a_chain_beats_the_best_lookahead_in_turn_and_keeps_both_devices_busy() -> None:
    """AMUSD's own regime: a draft step of 0.35 and an acceptance of 0.8.

    A chain cannot be 1.6 times as fast there. With the J-th token of a run wrong, the step that finds out starts after
    J - 1 draft steps at the earliest, so a run of J tokens takes (J - 1) * c + 1 at least. J is 1 / (1 - alpha) on
    average: (4 * 0.35 + 1) / 5 = 0.48 per token, against 0.694 in turn a ratio of 1.45.
    """
    outcome = run(draft_step=flat(0.35), verify_step=flat(1.0), coverage=(0.8,), tree_width=1, num_tokens=3000)
    bound = (4 * 0.35 + 1.0) / 5
    assert best_in_turn(0.8, 0.35) / bound < 1.46
    assert bound < outcome.seconds_per_token < best_in_turn(0.8, 0.35) / 1.12
    assert outcome.both_busy > 0.9


def test_a_tree_is_1_6_times_as_fast_as_the_best_lookahead_in_turn() -> None:
    """The same regime with branches. A draft step over several nodes takes as long as one over one."""
    outcome = run(
        draft_step=flat(0.35), verify_step=flat(1.0), coverage=TREE_OF_FOUR, max_run_ahead=256, num_tokens=3000
    )
    assert outcome.seconds_per_token < best_in_turn(0.8, 0.35) / 1.6


@pytest.mark.parametrize(("hop", "verify_seconds"), [(0.0, 2.3e-3), (0.2e-3, 2.3e-3), (0.3e-3, 17e-3)])
def test_the_automatic_tree_beats_chain_and_target_alone_where_the_demonstration_pair_works(
    hop: float, verify_seconds: float
) -> None:
    given = {
        "draft_step": sloped(0.6e-3, 0.02),
        "verify_step": sloped(verify_seconds, 0.03 if verify_seconds < 10e-3 else 0.017),
        "coverage": DEMONSTRATION,
        "hop": hop,
    }
    chain, tree = run(tree_width=1, **given), run(tree_width=0, **given)
    assert tree.seconds_per_token < 0.9 * chain.seconds_per_token
    assert tree.seconds_per_token < verify_seconds / 1.25


@pytest.mark.parametrize("draft_step", [0.02, 0.1])
@pytest.mark.parametrize("hop", [0.0, 0.05])
def test_where_the_draft_is_quick_waiting_beats_never_waiting(draft_step: float, hop: float) -> None:
    given = {"draft_step": flat(draft_step), "verify_step": sloped(1.0, 0.017), "coverage": (0.8,), "tree_width": 1}
    waiting = run(hop=hop, **given)
    never = run_pair(Circumstances(hop=hop, **given), policy_of(PolicyName("no_wait")))  # type: ignore[arg-type]
    assert waiting.seconds_per_token < 1.02 * never.seconds_per_token
    if draft_step < 0.1:
        assert waiting.wait > 0.0
        assert waiting.seconds_per_token < 0.95 * never.seconds_per_token


@pytest.mark.parametrize(("alpha", "draft_step", "hop"), EVERY_PAIR)
def test_it_is_never_slower_than_the_target_alone_by_more_than_three_in_a_hundred(
    alpha: float, draft_step: float, hop: float
) -> None:
    """Scoring a token costs 0.03 of a step here, so plain decoding must be found where guesses are not worth it."""
    for tree_width, coverage in ((1, (alpha,)), (0, (alpha, *(alpha + (1.0 - alpha) * more for more in (0.3, 0.4))))):
        outcome = run(
            draft_step=flat(draft_step),
            verify_step=sloped(1.0, 0.03),
            coverage=coverage if alpha else (0.0,) * len(coverage),
            hop=hop,
            tree_width=tree_width,
            num_tokens=300,
        )
        assert outcome.seconds_per_token < 1.0 / 0.97


@pytest.mark.parametrize("draft_step", [0.02, 1.0])
def test_a_useless_draft_is_switched_off(draft_step: float) -> None:
    outcome = run(draft_step=flat(draft_step), verify_step=sloped(1.0, 0.03), coverage=(0.0, 0.0, 0.0), num_tokens=600)
    assert outcome.statistics.num_draft_tokens < 0.1 * outcome.statistics.num_rounds
    assert outcome.wait < 0.01


def test_most_rejections_find_their_continuation_drafted() -> None:
    """Outcome hits (Saguaro, arXiv 2603.03251): where a verify step leaves time for it, and one of four is right."""
    outcome = run(draft_step=flat(0.1), verify_step=sloped(1.0, 0.017), coverage=TREE_OF_FOUR)
    statistics = outcome.statistics
    assert statistics.num_bonus_hits > 0.7 * statistics.num_bonuses > 0
    assert statistics.num_recovered_token_hits + statistics.num_bonus_hits > 0.6 * (
        statistics.num_rejections + statistics.num_bonuses
    )


def test_the_drafter_rests_when_nothing_is_worth_it() -> None:
    outcome = run(draft_step=flat(0.01), verify_step=sloped(1.0, 0.1), coverage=DEMONSTRATION)
    assert outcome.draft_busy < 0.8
