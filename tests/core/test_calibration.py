"""What a draft's confidence is worth: sane at first, right after a while, forgetful."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.calibration import Calibration, decided
from outrider.core.tree import SpeculationTree


def chance(calibration: Calibration, rank: int, probability: float) -> float:
    return math.exp(calibration.log_chance(rank, math.log(probability)))


def test_at_first_more_confidence_and_a_better_rank_are_worth_more() -> None:
    calibration = Calibration()
    by_confidence = [chance(calibration, 0, probability) for probability in (0.02, 0.15, 0.5, 0.75, 0.97)]
    assert by_confidence == sorted(by_confidence)
    assert all(chance(calibration, rank, 0.3) > chance(calibration, rank + 1, 0.3) for rank in range(7))
    assert 0.3 < chance(calibration, 0, 0.5) < 0.8


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(-50.0, 0.0), st.booleans()), max_size=50))
def test_nothing_is_ever_certain(guesses: list[tuple[int, float, bool]]) -> None:
    calibration = Calibration()
    for guess in guesses:
        calibration.observe(*guess)
    for rank, log_prob, _ in guesses:
        assert math.log(1e-5) < calibration.log_chance(rank, log_prob) < 0.0


def test_a_boastful_draft_is_seen_through() -> None:
    calibration = Calibration()
    for index in range(200):
        calibration.observe(0, math.log(0.97), index % 5 == 0)
    assert chance(calibration, 0, 0.97) == pytest.approx(0.2, abs=0.05)
    assert chance(calibration, 0, 0.5) == chance(Calibration(), 0, 0.5)


def test_what_was_learned_is_forgotten_when_the_text_changes() -> None:
    calibration = Calibration()
    for right in [True] * 500 + [False] * 500:
        calibration.observe(0, -0.1, right)
    assert math.exp(calibration.log_chance(0, -0.1)) < 0.05


def test_a_session_starts_from_what_all_have_learned_and_departs_from_it_soon() -> None:
    everybody = Calibration()
    for _ in range(500):
        everybody.observe(1, -1.0, True)
    session = Calibration(everybody)
    assert session.log_chance(1, -1.0) == everybody.log_chance(1, -1.0)
    for _ in range(40):
        session.observe(1, -1.0, False)
    assert math.exp(session.log_chance(1, -1.0)) < 0.4
    assert math.exp(everybody.log_chance(1, -1.0)) > 0.9


def test_a_commit_decides_every_guess_for_its_places() -> None:
    tree = SpeculationTree(4, 0)
    first = [tree.attach(tree.root, token_id, -1.0) for token_id in (10, 11, 12)]
    assert first[1] is not None
    tree.attach(first[1], 20, -0.3)
    before, after = Calibration(), Calibration()
    # 11 was guessed second; below it 20 was wrong; nothing was guessed for the third place.
    assert decided(tree.root, [11, 21, 30], [after]) == (2, 1)
    changes = [after.log_chance(rank, -1.0) - before.log_chance(rank, -1.0) for rank in range(3)]
    assert [change > 0.0 for change in changes] == [False, True, False]
    assert after.log_chance(0, -0.3) < before.log_chance(0, -0.3)


def test_a_place_without_guesses_decides_nothing() -> None:
    calibration = Calibration()
    assert decided(SpeculationTree(4, 0).root, [1, 2], [calibration]) == (0, 0)


def test_the_chances_of_a_path_multiply_along_it() -> None:
    calibration = Calibration()
    tree = SpeculationTree(4, 0, calibration.log_chance)
    path = [tree.root]
    for token_id in range(1, 5):
        node = tree.attach(path[-1], token_id, -0.5)
        assert node is not None
        path.append(node)
    assert all(
        child.path_log_prob - parent.path_log_prob == pytest.approx(calibration.log_chance(0, -0.5))
        for parent, child in pairwise(path)
    )
