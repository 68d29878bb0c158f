"""What evidence is worth: as believed at first, right after a while, forgetful, and of each kind by itself."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.estimate.calibration import Calibration, decided
from outrider.core.estimate.confidence import CLAIM_PROBABILITIES, claim_bin
from outrider.core.protocol.tree import SpeculationTree

PRIORS = (0.5, 0.97, 0.02)


def probability(calibration: Calibration, confidence_bin: int) -> float:
    return math.exp(calibration.log_acceptance(confidence_bin))


def test_at_first_it_believes_what_it_is_given() -> None:
    calibration = Calibration(PRIORS)
    assert [probability(calibration, confidence_bin) for confidence_bin in range(3)] == pytest.approx(PRIORS)


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=50))
def test_nothing_is_ever_certain(guesses: list[tuple[int, bool]]) -> None:
    calibration = Calibration(PRIORS)
    for confidence_bin, right in guesses:
        calibration.observe(confidence_bin, right)
        assert math.log(1e-5) < calibration.log_acceptance(confidence_bin) < 0.0


@pytest.mark.parametrize("right", [True, False])
def test_nothing_is_certain_after_any_number_of_rounds(right: bool) -> None:
    calibration = Calibration(PRIORS)
    for _ in range(5000):
        calibration.observe(0, right)
    assert math.log(1e-5) < calibration.log_acceptance(0) < 0.0


def test_a_boastful_draft_is_seen_through_and_each_kind_learns_by_itself() -> None:
    calibration = Calibration(PRIORS)
    for index in range(200):
        calibration.observe(1, index % 5 == 0)
    assert probability(calibration, 1) == pytest.approx(0.2, abs=0.05)
    assert (probability(calibration, 0), probability(calibration, 2)) == pytest.approx((PRIORS[0], PRIORS[2]))


def test_what_was_learned_is_forgotten_when_the_text_changes() -> None:
    calibration = Calibration(PRIORS)
    for right in [True] * 500 + [False] * 500:
        calibration.observe(0, right)
    assert probability(calibration, 0) < 0.05


def test_a_session_starts_from_what_all_have_learned_and_departs_from_it_soon() -> None:
    everybody = Calibration(PRIORS)
    for _ in range(500):
        everybody.observe(2, True)
    session = everybody.for_session()
    assert [session.log_acceptance(confidence_bin) for confidence_bin in range(3)] == [
        everybody.log_acceptance(confidence_bin) for confidence_bin in range(3)
    ]
    for _ in range(40):
        session.observe(2, False)
    assert probability(session, 2) < 0.4
    assert probability(everybody, 2) > 0.9


def test_a_commit_decides_every_guess_for_its_places() -> None:
    before, after = Calibration([0.5] * 5), Calibration([0.5] * 5)
    # 11 was guessed, a guess of cell 1; below it 20 was wrong, of cell 3; nothing was guessed for the third place.
    decided([(11, [(10, 0), (11, 1), (12, 2)]), (21, [(20, 3)]), (30, ())], [after])
    changes = [
        after.log_acceptance(confidence_bin) - before.log_acceptance(confidence_bin) for confidence_bin in range(5)
    ]
    assert [change > 0.0 for change in changes] == [False, True, False, False, False]
    assert [change < 0.0 for change in changes] == [True, False, True, True, False]


def test_the_chances_of_a_path_multiply_along_it() -> None:
    """Of claims as a verifier has learned to take them: it is told 0.6 and knows better."""
    calibration = Calibration(CLAIM_PROBABILITIES)
    claimed = math.log(0.59)
    for _ in range(50):
        calibration.observe(claim_bin(claimed), False)
    tree = SpeculationTree(4, 0, lambda log_prob: calibration.log_acceptance(claim_bin(log_prob)))
    path = [tree.root]
    for token_id in range(1, 5):
        node = tree.attach(path[-1], token_id, claimed)
        assert node is not None
        assert node.log_prob == claimed
        path.append(node)
    known = calibration.log_acceptance(claim_bin(claimed))
    assert known < math.log(0.1)
    assert all(child.path_log_prob - parent.path_log_prob == pytest.approx(known) for parent, child in pairwise(path))
