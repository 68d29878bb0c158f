"""Why speculation pays for a completion or does not: sentences with the completion's own figures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final, NamedTuple

from outrider.core.coordinate.events import Finished, GenerationMode
from outrider.core.coordinate.statistics import Speculation
from outrider.core.estimate.speculation_gate import TRIAL_REASON

_ROUNDS_MIN: Final = 8
"""Fewer rounds tell nothing: the first has no draft, and a drafter that begins to read the prompt misses some."""

_LENGTH_MIN: Final = 1.5
"""Tokens a round from which speculation counts as paying where the target alone was not measured: a round that scores
draft tokens, and waits for them, takes longer than one that does not. The bundled pair on two CPU cores breaks even at
about 1.4."""

_FALLS_OFF: Final = 0.5
"""Acceptance falls off at the first depth that fewer than this share of the rounds pass which came that far: from there
on, a draft token is more likely wrong than right."""

_UNFIT_SHARE: Final = 0.05
_UNFIT_TOKENS_MIN: Final = 32
"""A drafter of which fewer draft tokens are accepted than one in so many rounds, of so many tokens at least, hardly
reads the same text as the target: who does guesses at least its commonest tokens more often."""

_LATE_SHARE: Final = 0.25
"""Of rounds without a draft token, or of the time between verify steps: what may be gained there is then more than the
noise of such measurements."""

_SHORT_RATE: Final = 0.6
"""Accepted share of the scored draft tokens above which more of them would be accepted, too: where a round scores as
many as are worth it, the last ones are mostly wrong."""

_LOOKUP_CARRIES: Final = 0.5
_LOOKUP_FAILS: Final = 0.1
_LOOKUP_TOKENS_MIN: Final = 16
"""Share of all accepted tokens from which prompt lookup does most of the work; its own accepted share below which it
does none; and how many tokens it must have found for either to be said."""

_WITHOUT_DRAFTER: Final = {
    GenerationMode.TARGET_ONLY: "No drafter guessed for this request",
    GenerationMode.DEGRADED: "The drafter was lost on the way, and the target went on alone",
    GenerationMode.SPECULATIVE: "The drafter paused on the way, and the target went on alone",
}
"""What is said before the reason."""


class Explanation(NamedTuple):
    """Whether speculation paid, and why."""

    pays: bool | None
    """None if it was turned off or is being tried, or if there were too few rounds to tell."""
    sentences: tuple[str, ...]
    """The most important first. Not empty."""


def explanation(finished: Finished, target_only: Finished | None = None) -> Explanation:
    """Explains a completion by its own figures, and by those of the same one without speculation where they are given.

    Without the latter, one that had its drafter to the end pays if it committed `_LENGTH_MIN` tokens a round or more.
    """
    told, reason = finished.speculation, finished.mode_reason
    ms, target_ms = _ms_per_token(finished), _ms_per_token(target_only)
    took = f"{told.acceptance_length:.2f} tokens a round"
    if ms is not None and target_ms is not None:
        took += f", {ms:.3g} ms a token, and {target_ms:.3g} ms by the target alone"
    if reason:
        pays = None if reason == TRIAL_REASON else False
        without = (f"{_WITHOUT_DRAFTER[finished.mode]}: {reason}.", *((f"It made {took}.",) if target_ms else ()))
        return Explanation(pays, (*without, *_acceptance(told, pays), *_prompt_lookup(told, pays)))
    if finished.mode is GenerationMode.TARGET_ONLY:
        return Explanation(None, ("Speculation was turned off for this request.",))
    if ms is not None and target_ms is not None:
        pays = ms < target_ms
        first = f"Speculation {'pays' if pays else 'does not pay'}: {took}."
    elif told.num_rounds < _ROUNDS_MIN:
        return Explanation(None, (f"Too few rounds to tell: {told.num_rounds}; ask for more tokens.",))
    else:
        pays = told.acceptance_length >= _LENGTH_MIN
        condition = "" if ms is None else f"; it is worth it if a token takes the target alone more than {ms:.3g} ms"
        first = f"Speculation {'pays' if pays else 'hardly pays'}: {took}{condition}."
    causes = *_acceptance(told, pays), *_lateness(finished), *_shortness(told), *_prompt_lookup(told, pays)
    return Explanation(pays, (first, *causes))


def _ms_per_token(finished: Finished | None) -> float | None:
    """Milliseconds for each token after the first; None if there is none."""
    if finished is None:
        return None
    num_later = finished.usage.num_generated_tokens - 1
    spent_ms = _decode_ms(finished)
    return spent_ms / num_later if num_later > 0 and spent_ms > 0.0 else None


def _decode_ms(finished: Finished) -> float:
    return finished.timings.total_ms - finished.timings.first_token_ms


def _num_undrafted(told: Speculation) -> float:
    """Rounds that scored no draft token: their next token is neither recovered nor a bonus. A whole number, but for the
    single precision of its parts."""
    num_next_tokens = told.acceptance_length * told.num_rounds - told.num_accepted_tokens
    return max(num_next_tokens - told.num_rejections - told.num_bonuses, 0.0)


def _acceptance(told: Speculation, pays: bool | None) -> Iterator[str]:
    if not told.num_draft_tokens:
        return
    num_drafted = told.num_rounds - _num_undrafted(told)
    num_own = told.num_draft_tokens - told.num_prompt_lookup_tokens - told.num_prediction_tokens
    num_own_accepted = (
        told.num_accepted_tokens - told.num_accepted_prompt_lookup_tokens - told.num_accepted_prediction_tokens
    )
    if num_own >= _UNFIT_TOKENS_MIN and num_own_accepted < _UNFIT_SHARE * num_drafted:
        yield (
            f"The target accepted {num_own_accepted} of the drafter's {num_own} draft tokens: such a draft model may "
            "have another tokenizer, chat template or family than the target; a drafter without a model does not know "
            "such text."
        )
        return
    if pays:
        return
    passed = [sum(told.acceptance_histogram[depth:]) for depth in range(1, len(told.acceptance_histogram))]
    shares = itertools.pairwise([num_drafted, *passed, 0])
    depth, (num_came, num_passed) = next(
        found for found in enumerate(shares, 1) if not found[1][1] >= _FALLS_OFF * found[1][0] > 0.0
    )
    yield (
        f"The target accepted {told.num_accepted_tokens} of {told.num_draft_tokens} draft tokens "
        f"({told.acceptance_rate:.0%}): acceptance falls off at depth {depth}, where {num_passed} of the "
        f"{num_came:.0f} rounds that came so far accepted a token."
    )


def _lateness(finished: Finished) -> Iterator[str]:
    told, decode_ms = finished.speculation, _decode_ms(finished)
    num_undrafted = _num_undrafted(told)
    if num_undrafted >= _LATE_SHARE * told.num_rounds:
        late = (
            f"the drafter was late or paused, or the step had no room; {told.num_stale_nodes} of "
            f"{told.num_drafted_nodes} drafted nodes came after their place had been decided otherwise."
        )
        own = "no drafter sent one, and what the verifier guesses by itself did not promise enough, or had no room."
        yield (
            f"In {num_undrafted:.0f} of {told.num_rounds} rounds there was no draft token to score: "
            f"{late if told.num_drafted_nodes else own}"
        )
    # The wait before the first step is part of the first token's time, so at least the rest is between later steps.
    wait_ms = finished.timings.verify_wait_ms - finished.timings.first_token_ms
    if decode_ms > 0.0 and wait_ms >= _LATE_SHARE * decode_ms:
        yield (
            f"Between its steps the verifier waited {wait_ms:.0f} of {decode_ms:.0f} ms or more, for drafts or for its "
            "turn among other requests."
        )


def _shortness(told: Speculation) -> Iterator[str]:
    num_drafted = told.num_rounds - _num_undrafted(told)
    if num_drafted > 0 and told.acceptance_rate >= _SHORT_RATE:
        yield (
            f"A round scored {told.num_draft_tokens / num_drafted:.1f} draft tokens and {told.acceptance_rate:.0%} of "
            "them were accepted, so more would be: raise max_draft_tokens or tree_width if they are set low; otherwise "
            "the drafter is too slow to guess more."
        )


def _prompt_lookup(told: Speculation, pays: bool | None) -> Iterator[str]:
    num_tokens, num_accepted = told.num_prompt_lookup_tokens, told.num_accepted_prompt_lookup_tokens
    if num_tokens < _LOOKUP_TOKENS_MIN:
        return
    if num_accepted and num_accepted >= _LOOKUP_CARRIES * told.num_accepted_tokens:
        yield (
            f"Prompt lookup carries: {num_accepted} of {told.num_accepted_tokens} accepted tokens were looked up by "
            "the verifier, in what the text repeats or in its n-gram table."
        )
    elif not pays and num_accepted < _LOOKUP_FAILS * num_tokens:
        yield (
            f"Prompt lookup does not help: of {num_tokens} tokens that the verifier looked up {num_accepted} were "
            "accepted."
        )
