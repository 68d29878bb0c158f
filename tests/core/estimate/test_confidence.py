"""What speaks for guesses: every word has its cell, and what is believed of each cell at first is sane."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.estimate.confidence import (
    CLAIM_PROBABILITIES,
    DRAFT_PROBABILITIES,
    NGRAM_PROBABILITIES,
    VERIFY_PROBABILITIES,
    claim_bin,
    lookup_bin,
    margin_bin,
    ngram_bin,
    prediction_bin,
    recall_bin,
)
from outrider.core.protocol.validation import TREE_WIDTH_MAX

MARGINS = (0.0, 0.12, 0.3, 0.5, 0.7, 1.0, 1.2, 1.5, 1.8, 2.2, 3.0, 4.0, 5.0, 50.0)
"""One of each bucket."""
PROBABILITIES = (0.001, 0.02, 0.07, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.93, 0.97, 0.999)
"""One of each bucket."""


def draft_chance(confidence_bin: int) -> float:
    return DRAFT_PROBABILITIES[confidence_bin]


def test_each_kind_of_guess_has_a_cell_of_its_own() -> None:
    confidence_bins = [margin_bin(rank, margin) for rank in range(TREE_WIDTH_MAX) for margin in MARGINS]
    assert confidence_bins == list(range(len(DRAFT_PROBABILITIES)))
    confidence_bins = [ngram_bin(3, probability) for probability in PROBABILITIES]
    assert confidence_bins == list(range(len(NGRAM_PROBABILITIES)))
    confidence_bins = [claim_bin(math.log(probability)) for probability in PROBABILITIES]
    assert confidence_bins == list(range(len(CLAIM_PROBABILITIES)))
    confidence_bins += [lookup_bin(probability) for probability in PROBABILITIES]
    confidence_bins += [prediction_bin(probability) for probability in PROBABILITIES]
    confidence_bins += [recall_bin(probability) for probability in PROBABILITIES]
    assert confidence_bins == list(range(len(VERIFY_PROBABILITIES)))


@given(st.integers(0, 50), st.floats(min_value=0.0) | st.just(math.nan))
def test_whatever_a_sampler_says_has_a_cell(rank: int, margin: float) -> None:
    """An infinite margin, and what comes of a row that is not a number."""
    assert 0 <= margin_bin(rank, margin) < len(DRAFT_PROBABILITIES)


@given(st.floats(max_value=0.0, allow_infinity=False))
def test_whatever_is_claimed_has_a_cell(log_acceptance: float) -> None:
    assert 0 <= claim_bin(log_acceptance) < len(CLAIM_PROBABILITIES)


@given(st.floats(min_value=0.0, max_value=1.0, exclude_min=True))
def test_whatever_is_looked_up_has_a_cell(probability: float) -> None:
    assert len(CLAIM_PROBABILITIES) <= lookup_bin(probability) < len(VERIFY_PROBABILITIES)


def test_the_first_guess_is_worth_more_the_further_it_is_ahead() -> None:
    probabilities = [draft_chance(margin_bin(0, margin)) for margin in MARGINS]
    assert all(before < after for before, after in pairwise(probabilities))
    assert 0.3 < probabilities[0] < 0.5, "as good as the second"
    assert probabilities[-1] > 0.98


@pytest.mark.parametrize("rank", range(1, TREE_WIDTH_MAX))
def test_another_guess_is_worth_less_the_further_it_is_behind(rank: int) -> None:
    probabilities = [draft_chance(margin_bin(rank, margin)) for margin in MARGINS]
    assert probabilities == sorted(probabilities, reverse=True)
    assert all(
        draft_chance(margin_bin(rank, margin)) <= draft_chance(margin_bin(rank - 1, margin)) for margin in MARGINS
    )


def test_what_is_believed_at_first_of_siblings_is_hardly_more_than_certainty() -> None:
    for margin in MARGINS:
        siblings = [margin_bin(0, margin), *(margin_bin(rank, margin + 0.3 * (rank - 1)) for rank in range(1, 4))]
        assert sum(map(draft_chance, siblings)) < 1.15


def test_an_ngram_is_worth_more_the_more_it_promises() -> None:
    probabilities = [NGRAM_PROBABILITIES[ngram_bin(0, probability)] for probability in PROBABILITIES]
    assert probabilities == sorted(probabilities)


def test_a_claim_is_taken_at_its_word_at_first() -> None:
    for probability in PROBABILITIES:
        assert CLAIM_PROBABILITIES[claim_bin(math.log(probability))] == pytest.approx(probability, abs=0.06)


def test_a_verifier_takes_claims_as_they_are_and_ngrams_as_a_drafter_without_a_model_does() -> None:
    for probability in PROBABILITIES:
        assert (
            VERIFY_PROBABILITIES[claim_bin(math.log(probability))]
            == CLAIM_PROBABILITIES[claim_bin(math.log(probability))]
        )
        assert VERIFY_PROBABILITIES[lookup_bin(probability)] == NGRAM_PROBABILITIES[ngram_bin(0, probability)]
