"""What is derived from the raw counts."""

from __future__ import annotations

from outrider.core.statistics import SpeculationStatistics


def test_before_the_first_round_everything_is_zero() -> None:
    statistics = SpeculationStatistics()
    assert statistics.acceptance_length == 0.0
    assert statistics.acceptance_histogram == []


def test_the_acceptance_length_counts_the_next_token() -> None:
    assert SpeculationStatistics(num_rounds=4, num_committed_tokens=10).acceptance_length == 2.5


def test_the_histogram_has_a_place_for_every_count_up_to_the_largest() -> None:
    statistics = SpeculationStatistics(accepted_by_round=[0, 3, 0, 1])
    assert statistics.acceptance_histogram == [2, 1, 0, 1]


def test_two_sessions_share_nothing() -> None:
    first, second = SpeculationStatistics(), SpeculationStatistics()
    first.accepted_by_round.append(1)
    assert second.accepted_by_round == []


def test_sessions_together_are_their_sum() -> None:
    first = SpeculationStatistics(num_rounds=2, num_committed_tokens=5, verify_ms=1.5, accepted_by_round=[3, 0])
    second = SpeculationStatistics(num_rounds=1, num_committed_tokens=1, verify_ms=0.5, accepted_by_round=[0])
    together = first + second
    assert together == SpeculationStatistics(
        num_rounds=3, num_committed_tokens=6, verify_ms=2.0, accepted_by_round=[3, 0, 0]
    )
    assert together.acceptance_length == 2.0
    assert first.accepted_by_round == [3, 0]
