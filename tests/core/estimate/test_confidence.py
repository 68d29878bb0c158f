"""What speaks for guesses: every word has its cell, and what is believed of each cell at first is sane."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.estimate.confidence import (
    CLAIM_CHANCES,
    DRAFT_CHANCES,
    VERIFY_CHANCES,
    Ngram,
    claim_cell,
    lookup_cell,
    margin_cell,
    ngram_cell,
)
from outrider.core.protocol.validation import TREE_WIDTH_MAX

MARGINS = (0.0, 0.12, 0.3, 0.5, 0.7, 1.0, 1.2, 1.5, 1.8, 2.2, 3.0, 4.0, 5.0, 50.0)
"""One of each bucket."""
CHANCES = (0.001, 0.02, 0.07, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.93, 0.97, 0.999)
"""One of each bucket."""


def draft_chance(cell: int) -> float:
    return DRAFT_CHANCES[cell]


def test_each_kind_of_guess_has_a_cell_of_its_own() -> None:
    cells = [margin_cell(rank, margin) for rank in range(TREE_WIDTH_MAX) for margin in MARGINS]
    cells += [ngram_cell(said, chance) for said in Ngram for chance in CHANCES]
    assert cells == list(range(len(DRAFT_CHANCES)))
    cells = [claim_cell(math.log(chance)) for chance in CHANCES]
    assert cells == list(range(len(CLAIM_CHANCES)))
    cells += [lookup_cell(chance) for chance in CHANCES]
    assert cells == list(range(len(VERIFY_CHANCES)))


@given(st.integers(0, 50), st.floats(min_value=0.0) | st.just(math.nan))
def test_whatever_a_sampler_says_has_a_cell(rank: int, margin: float) -> None:
    """An infinite margin, and what comes of a row that is not a number."""
    assert 0 <= margin_cell(rank, margin) < ngram_cell(Ngram.FORESEEN, 1e-300)


@given(st.floats(max_value=0.0, allow_infinity=False))
def test_whatever_is_claimed_has_a_cell(log_chance: float) -> None:
    assert 0 <= claim_cell(log_chance) < len(CLAIM_CHANCES)


@given(st.floats(min_value=0.0, max_value=1.0, exclude_min=True))
def test_whatever_is_looked_up_has_a_cell(probability: float) -> None:
    assert len(CLAIM_CHANCES) <= lookup_cell(probability) < len(VERIFY_CHANCES)


def test_the_first_guess_is_worth_more_the_further_it_is_ahead() -> None:
    chances = [draft_chance(margin_cell(0, margin)) for margin in MARGINS]
    assert all(before < after for before, after in pairwise(chances))
    assert 0.3 < chances[0] < 0.5, "as good as the second"
    assert chances[-1] > 0.98


@pytest.mark.parametrize("rank", range(1, TREE_WIDTH_MAX))
def test_another_guess_is_worth_less_the_further_it_is_behind(rank: int) -> None:
    chances = [draft_chance(margin_cell(rank, margin)) for margin in MARGINS]
    assert chances == sorted(chances, reverse=True)
    assert all(
        draft_chance(margin_cell(rank, margin)) <= draft_chance(margin_cell(rank - 1, margin)) for margin in MARGINS
    )


def test_what_is_believed_at_first_of_siblings_is_hardly_more_than_certainty() -> None:
    for margin in MARGINS:
        siblings = [margin_cell(0, margin), *(margin_cell(rank, margin + 0.3 * (rank - 1)) for rank in range(1, 4))]
        assert sum(map(draft_chance, siblings)) < 1.15


def test_an_ngram_is_worth_most_where_the_draft_model_says_the_same() -> None:
    for chance in CHANCES:
        confirmed, named, contradicted = (
            draft_chance(ngram_cell(said, chance)) for said in (Ngram.CONFIRMED, Ngram.NAMED, Ngram.CONTRADICTED)
        )
        assert confirmed > named >= contradicted
        assert confirmed >= draft_chance(ngram_cell(Ngram.FORESEEN, chance))
    for said in Ngram:
        chances = [draft_chance(ngram_cell(said, chance)) for chance in CHANCES]
        assert chances == sorted(chances)


def test_a_claim_is_taken_at_its_word_at_first() -> None:
    for chance in CHANCES:
        assert CLAIM_CHANCES[claim_cell(math.log(chance))] == pytest.approx(chance, abs=0.06)


def test_a_verifier_takes_claims_as_they_are_and_ngrams_as_a_drafter_does_before_its_model_has_spoken() -> None:
    for chance in CHANCES:
        assert VERIFY_CHANCES[claim_cell(math.log(chance))] == CLAIM_CHANCES[claim_cell(math.log(chance))]
        assert VERIFY_CHANCES[lookup_cell(chance)] == draft_chance(ngram_cell(Ngram.FORESEEN, chance))
