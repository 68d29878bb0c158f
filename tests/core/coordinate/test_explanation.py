"""Why speculation pays or does not: each sentence, from made-up figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from outrider.core.coordinate.events import Finished, GenerationMode, Timings, Usage
from outrider.core.coordinate.explanation import explanation
from outrider.core.coordinate.statistics import Speculation
from outrider.core.estimate.speculation_gate import TRIAL_REASON
from outrider.core.protocol.messages import FinishReason


def finished(
    histogram: tuple[int, ...],
    num_draft_tokens: int,
    *,
    num_undrafted: int = 1,
    timings: Timings | None = None,
    mode: GenerationMode = GenerationMode.SPECULATIVE,
    reason: str = "",
    **counts: Any,
) -> Finished:
    """Rounds as the histogram has them; those that scored draft tokens end with a rejection each."""
    num_rounds = sum(histogram)
    num_accepted = sum(depth * rounds for depth, rounds in enumerate(histogram))
    num_tokens = num_rounds + num_accepted
    speculation = Speculation(
        num_rounds=num_rounds,
        num_draft_tokens=num_draft_tokens,
        num_accepted_tokens=num_accepted,
        num_rejections=num_rounds - num_undrafted,
        acceptance_length=num_tokens / num_rounds if num_rounds else 0.0,
        acceptance_histogram=histogram,
        **{"num_drafted_nodes": num_draft_tokens, **counts},
    )
    return Finished(
        reason=FinishReason.LENGTH,
        mode=mode,
        mode_reason=reason,
        text="",
        usage=Usage(10, num_tokens),
        speculation=speculation,
        timings=timings or Timings(100.0, 100.0 + 5.0 * (num_tokens - 1), 0.0, 0.0, 0.0),
    )


WELL = finished((10, 10, 20, 10), 300)
"""80 of 300 draft tokens accepted in 50 rounds: 2.6 tokens a round, each in 5 ms."""


def test_what_pays_is_told_by_its_length_and_its_time() -> None:
    assert explanation(WELL) == (
        True,
        ("Speculation pays: 2.60 tokens a round; it is worth it if a token takes the target alone more than 5 ms.",),
    )


@pytest.mark.parametrize(
    ("target_ms", "pays", "words"),
    [
        (8.0, True, "Speculation pays: 2.60 tokens a round, 5 ms a token, and 8 ms by the target alone."),
        (4.0, False, "Speculation does not pay: 2.60 tokens a round, 5 ms a token, and 4 ms by the target alone."),
    ],
)
def test_a_measurement_decides(target_ms: float, pays: bool, words: str) -> None:
    alone = finished(
        (130,), 0, num_undrafted=130, timings=Timings(50.0, 50.0 + 129 * target_ms, 0.0, 0.0, 0.0),
        mode=GenerationMode.TARGET_ONLY,
    )  # fmt: skip
    found = explanation(WELL, alone)
    assert (found.pays, found.sentences[0]) == (pays, words)
    assert any("falls off" in sentence for sentence in found.sentences) is not pays


@pytest.mark.parametrize(
    ("mode", "begins"),
    [
        (GenerationMode.TARGET_ONLY, "No drafter guessed for this request: "),
        (GenerationMode.DEGRADED, "The drafter was lost on the way, and the target went on alone: "),
        (GenerationMode.SPECULATIVE, "The drafter paused on the way, and the target went on alone: "),
    ],
)
def test_a_drafter_that_is_missing_comes_first_with_its_reason(mode: GenerationMode, begins: str) -> None:
    reason = "drafts do not pay at this load: a token takes 5.2 ms with drafts and 4.1 ms without"
    found = explanation(replace(WELL, mode=mode, mode_reason=reason))
    assert found.pays is False
    assert found.sentences[0] == f"{begins}{reason}."
    assert explanation(replace(WELL, mode=mode, mode_reason=reason), WELL).sentences[1] == (
        "It made 2.60 tokens a round, 5 ms a token, and 5 ms by the target alone."
    )
    assert not any("late" in sentence for sentence in found.sentences)


def test_nothing_is_said_of_what_was_turned_off_is_being_tried_or_was_too_short() -> None:
    off = replace(WELL, mode=GenerationMode.TARGET_ONLY)
    assert explanation(off) == (None, ("Speculation was turned off for this request.",))
    assert explanation(replace(WELL, mode_reason=TRIAL_REASON)).pays is None
    short = explanation(finished((1, 2, 4), 40))
    assert short == (None, ("Too few rounds to tell: 7; ask for more tokens.",))
    assert explanation(finished((1, 3, 4), 40)).pays is True
    assert explanation(finished((), 0, num_undrafted=0)).pays is None


@pytest.mark.parametrize(
    ("histogram", "num_draft_tokens", "words"),
    [
        ((71, 29), 400, "29 of 400 draft tokens (7%): acceptance falls off at depth 1, where 29 of the 99 rounds"),
        (
            (160, 1, 45),
            900,
            "91 of 900 draft tokens (10%): acceptance falls off at depth 1, where 46 of the 205 rounds",
        ),
    ],
)
def test_low_acceptance_is_told_with_the_depth_where_it_falls_off(
    histogram: tuple[int, ...], num_draft_tokens: int, words: str
) -> None:
    pays, (first, second, *more) = explanation(finished(histogram, num_draft_tokens))
    assert (pays, more) == (False, [])
    assert first.startswith("Speculation hardly pays: 1.")
    assert second == f"The target accepted {words} that came so far accepted a token."


@pytest.mark.parametrize(
    ("histogram", "depth", "share"),
    [((11, 70, 15, 5), 2, "20 of the 90"), ((11, 10, 10, 70), 4, "0 of the 70"), ((11, 30, 60), 3, "0 of the 60")],
)
def test_acceptance_may_fall_off_at_any_depth(histogram: tuple[int, ...], depth: int, share: str) -> None:
    lost = finished(histogram, 900, mode=GenerationMode.DEGRADED, reason="gone")
    assert f"falls off at depth {depth}, where {share} rounds" in explanation(lost).sentences[1]


@pytest.mark.parametrize(("num_accepted", "is_odd"), [(4, True), (5, False)])
def test_a_drafter_that_is_hardly_ever_right_does_not_fit(num_accepted: int, is_odd: bool) -> None:
    """Below one accepted token in twenty rounds. What the verifier looked up does not count for it."""
    histogram = (101 - 50 - num_accepted, 50 + num_accepted)
    counts: dict[str, Any] = {"num_prompt_lookup_tokens": 100, "num_accepted_prompt_lookup_tokens": 50}
    sentences = explanation(finished(histogram, 500, num_undrafted=1, **counts)).sentences
    words = f"The target accepted {num_accepted} of the drafter's 400 draft tokens: "
    assert any(each.startswith(words) for each in sentences) is is_odd
    assert any("another tokenizer, chat template or family" in each for each in sentences) is is_odd


def test_few_draft_tokens_do_not_condemn_a_drafter() -> None:
    assert "falls off" in explanation(finished((40,), 31)).sentences[1]
    assert "another tokenizer" in explanation(finished((40,), 32)).sentences[1]
    own = finished((40,), 32, num_drafted_nodes=0)
    assert "another tokenizer" in explanation(own).sentences[1], "the verifier drafts for itself"
    looked_up = finished((40,), 32, num_drafted_nodes=0, num_prompt_lookup_tokens=32)
    assert "falls off" in explanation(looked_up).sentences[1], "there was none"


def test_a_late_drafter_is_told_by_rounds_without_a_draft_token() -> None:
    counts: dict[str, Any] = {"num_drafted_nodes": 200, "num_stale_nodes": 60}
    late = finished((70, 20, 10), 100, num_undrafted=25, **counts)
    assert explanation(late).sentences[-1] == (
        "In 25 of 100 rounds there was no draft token to score: the drafter was late or paused, or the step had no "
        "room; 60 of 200 drafted nodes came after their place had been decided otherwise."
    )
    own = finished((70, 20, 10), 100, num_undrafted=25, num_drafted_nodes=0)
    assert explanation(own).sentences[-1] == (
        "In 25 of 100 rounds there was no draft token to score: no drafter sent one, and what the verifier guesses by "
        "itself did not promise enough, or had no room."
    )
    in_time = finished((70, 20, 10), 100, num_undrafted=24, **counts)
    assert not any("late" in sentence for sentence in explanation(in_time).sentences)


@pytest.mark.parametrize(("wait_ms", "is_told"), [(260.0, True), (240.0, False)])
def test_waits_between_steps_are_told_without_that_for_the_prompt(wait_ms: float, is_told: bool) -> None:
    waiting = replace(WELL, timings=Timings(100.0, 740.0, 300.0, wait_ms, 0.0))
    words = f"Between its steps the verifier waited {wait_ms - 100:.0f} of 640 ms or more"
    assert any(each.startswith(words) for each in explanation(waiting).sentences) is is_told


@pytest.mark.parametrize(("num_draft_tokens", "is_told"), [(100, True), (140, False)])
def test_rounds_that_are_too_short_are_told_by_how_much_of_them_is_accepted(
    num_draft_tokens: int, is_told: bool
) -> None:
    found = explanation(finished((11, 0, 40), num_draft_tokens))
    words = "A round scored 2.0 draft tokens and 80% of them were accepted, so more would be: raise max_draft_tokens"
    assert any(each.startswith(words) for each in found.sentences) is is_told
    assert found.pays is True


@pytest.mark.parametrize(("num_accepted", "carries"), [(40, True), (39, False)])
def test_prompt_lookup_that_carries_is_told(num_accepted: int, carries: bool) -> None:
    counts: dict[str, Any] = {"num_prompt_lookup_tokens": 60, "num_accepted_prompt_lookup_tokens": num_accepted}
    sentences = explanation(finished((10, 10, 20, 10), 300, **counts)).sentences
    words = f"Prompt lookup carries: {num_accepted} of 80 accepted tokens were looked up by the verifier"
    assert any(each.startswith(words) for each in sentences) is carries


@pytest.mark.parametrize(("num_tokens", "is_told"), [(16, True), (15, False)])
def test_prompt_lookup_that_does_not_help_is_told_where_speculation_does_not_pay(
    num_tokens: int, is_told: bool
) -> None:
    counts: dict[str, Any] = {"num_prompt_lookup_tokens": num_tokens, "num_accepted_prompt_lookup_tokens": 1}
    words = f"Prompt lookup does not help: of {num_tokens} tokens that the verifier looked up 1 were accepted."
    assert (words in explanation(finished((71, 29), 400, **counts)).sentences) is is_told
    assert words not in explanation(finished((10, 10, 20, 10), 300, **counts)).sentences


@pytest.mark.parametrize("length", [float("nan"), float("inf"), -1.0])
def test_figures_that_cannot_be_raise_nothing(length: float) -> None:
    """They come over a wire."""
    odd = Timings(length, length, length, length, length)
    spoilt = replace(WELL.speculation, acceptance_length=length, acceptance_histogram=(0,), num_rejections=2**32 - 1)
    for reason in ("", "lost"):
        assert explanation(replace(WELL, speculation=spoilt, timings=odd, mode_reason=reason)).sentences
