"""What is counted, and what is derived from it."""

from __future__ import annotations

import pytest

from outrider.core.coordinate.session import Session
from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.messages import Verdict


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


def test_what_the_verifier_looked_up_is_counted_apart() -> None:
    session = Session([7, 8, 9], vocab_size=10, max_run_ahead=8, drafting=True)
    session.on_verdict(
        Verdict(
            position=3,
            token_ids=[1, 2, 3],
            num_accepted=2,
            num_draft_tokens=5,
            num_prompt_lookup=4,
            num_accepted_prompt_lookup=1,
        )
    )
    found = session.statistics
    assert (found.num_draft_tokens, found.num_accepted_tokens) == (5, 2)
    assert (found.num_prompt_lookup_tokens, found.num_accepted_prompt_lookup_tokens) == (4, 1)


@pytest.mark.parametrize(("num_prompt_lookup", "num_accepted"), [(3, 0), (1, 2), (2, 2)])
def test_a_verifier_cannot_have_looked_up_more_than_was_scored_or_accepted(
    num_prompt_lookup: int, num_accepted: int
) -> None:
    session = Session([7, 8, 9], vocab_size=10, max_run_ahead=8, drafting=True)
    with pytest.raises(ProtocolViolationError, match="looked up"):
        session.on_verdict(
            Verdict(
                position=3,
                token_ids=[1, 2],
                num_accepted=1,
                num_draft_tokens=2,
                num_prompt_lookup=num_prompt_lookup,
                num_accepted_prompt_lookup=num_accepted,
            )
        )
