"""N-gram guesses beside a draft model, on a virtual clock: what they bring and cost."""

from __future__ import annotations

import pytest

from outrider.core.draft.session import DraftSession
from outrider.core.propose.ngram import NgramTable
from outrider.core.protocol.messages import DraftOpen
from outrider.core.protocol.sampling import SamplingParams

from .toys import Place, TieredDraft
from .virtual_pair import PROMPT, VOCAB_SIZE, Circumstances, Outcome, VirtualPair, sloped

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
        node_handling=4e-6,
        num_tokens=num_tokens,
    )
    pair = VirtualPair(circumstances)
    if loops:
        pair._target = LoopingTarget()
        pair._draft = TieredDraft(pair._target, COVERAGE)
    pair.drafter = DraftSession(
        DraftOpen(
            session_id="",
            token_ids=PROMPT,
            num_prompt_tokens=len(PROMPT),
            sampling=SamplingParams(),
            max_run_ahead=circumstances.max_run_ahead,
            tree_width=circumstances.tree_width,
            max_length=len(PROMPT) + num_tokens,
            vocab_size=VOCAB_SIZE,
        ),
        pair._draft_estimates,
        NgramTable(PROMPT) if ngrams else None,
    )
    return pair.run()


@pytest.mark.parametrize("draft_share", [0.05, 0.2, 0.35, 1.0])
def test_where_nothing_repeats_itself_they_cost_next_to_nothing(draft_share: float) -> None:
    """Every token is random, so that what followed before is hardly ever right. Over eight seeds they cost 1 %."""
    alone = run(ngrams=False, loops=False, draft_share=draft_share)
    beside = run(ngrams=True, loops=False, draft_share=draft_share)
    assert beside.token_ids == alone.token_ids
    assert beside.seconds_per_token < 1.04 * alone.seconds_per_token


@pytest.mark.parametrize("draft_share", [0.05, 0.2, 0.35, 1.0])
def test_where_text_repeats_itself_several_tokens_appear_per_draft_step(draft_share: float) -> None:
    alone = run(ngrams=False, loops=True, draft_share=draft_share)
    beside = run(ngrams=True, loops=True, draft_share=draft_share)
    assert beside.token_ids == alone.token_ids
    assert beside.seconds_per_token < 0.6 * alone.seconds_per_token
