"""A verifier's n-gram guesses beside a draft model's, on a virtual clock: what they bring and cost."""

from __future__ import annotations

import pytest

from bench.rivals.ruled import policy_of
from outrider.core.propose.ngram import NgramTable

from .toys import Place, ToyTarget
from .virtual_pair import VOCAB_SIZE, Circumstances, Outcome, outcome, sloped

COVERAGE = (0.55, 0.65, 0.7, 0.75)
VERIFY_SECONDS = 2.6e-3
LOOP_TOKENS = 40


class LoopingTarget:
    """Writes the same tokens over and over, whatever it is asked to follow."""

    seed = 3
    vocab_size = VOCAB_SIZE

    def next_token(self, place: Place) -> int:
        return (place.position % LOOP_TOKENS * 7 + 3) % VOCAB_SIZE


def run(*, ngrams: bool, loops: bool, draft_share: float, num_tokens: int = 1200) -> Outcome:
    circumstances = Circumstances(
        draft_step=sloped(draft_share * VERIFY_SECONDS, 0.035),
        verify_step=sloped(VERIFY_SECONDS, 0.035),
        coverage=COVERAGE,
        hop=0.25e-3,
        num_tokens=num_tokens,
    )
    target = LoopingTarget() if loops else ToyTarget(circumstances.seed, VOCAB_SIZE)
    return outcome(circumstances, circumstances.writing([target], policy_of(None), NgramTable if ngrams else None))


@pytest.mark.parametrize("draft_share", [0.05, 0.35, 1.0])
def test_where_nothing_repeats_itself_they_cost_next_to_nothing(draft_share: float) -> None:
    """Every token is random, so that what followed before is hardly ever right."""
    alone = run(ngrams=False, loops=False, draft_share=draft_share)
    beside = run(ngrams=True, loops=False, draft_share=draft_share)
    assert beside.token_ids == alone.token_ids
    assert beside.seconds_per_token < 1.04 * alone.seconds_per_token


@pytest.mark.parametrize("draft_share", [0.05, 1.0])
def test_where_text_repeats_itself_they_save_much(draft_share: float) -> None:
    alone = run(ngrams=False, loops=True, draft_share=draft_share)
    beside = run(ngrams=True, loops=True, draft_share=draft_share)
    assert beside.token_ids == alone.token_ids
    assert beside.seconds_per_token < 0.6 * alone.seconds_per_token
