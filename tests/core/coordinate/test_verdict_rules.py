"""What a verifier may say of a session: each way to say too much."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from outrider.core.coordinate.verdict_rules import VerdictRules
from outrider.core.protocol.ending import Ending
from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.line import Line
from outrider.core.protocol.messages import FinishReason, TokenLogprobs, Verdict

EOS, STOP = 2, 6
RULES = VerdictRules(Ending(frozenset({EOS}), frozenset({STOP}), 9), vocab_size=100, max_draft_tokens=4, num_logprobs=1)
SURE = TokenLogprobs(-0.5, (7,), (-0.5,))


def line(*generated: int) -> Line:
    """The prompt 7, 8, 9 and what follows it."""
    return Line([7, 8, 9, *generated], 3)


GOOD = Verdict(position=3, token_ids=[10, 11], num_accepted=1, num_draft_tokens=4, logprobs=(SURE, SURE))


class Endless(list[int]):
    """Token ids that nobody may look at."""

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: object) -> int:
        raise AssertionError("looked at")

    __iter__ = __getitem__  # pyright: ignore


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_draft_tokens": 0}, "2 tokens for 0 draft tokens"),
        ({"num_draft_tokens": 5}, "4 at most"),
        ({"num_draft_tokens": 2**32 - 1}, "4 at most"),
        ({"token_ids": Endless()}, "1000000 tokens for 4 draft tokens"),
        ({"position": 2}, "the prompt ends at 3"),
        ({"position": 8}, "the line at 9"),
        ({"token_ids": [10, 100]}, "out of range"),
        ({"token_ids": [-1, 10]}, "out of range"),
        ({"token_ids": [EOS, 10]}, "after the end"),
        ({"token_ids": [STOP, 10]}, "after the end"),
        ({"logprobs": ()}, "of 0 tokens, and 2 are due"),
        ({"logprobs": (SURE,) * 3}, "of 3 tokens, and 2 are due"),
        ({"logprobs": (SURE, SURE._replace(top_token_ids=(), top_logprobs=()))}, "0 alternatives"),
        ({"logprobs": (SURE, SURE._replace(top_token_ids=(7, 8), top_logprobs=(-1.0, -1.0)))}, "2 alternatives"),
        ({"logprobs": (SURE, SURE._replace(top_token_ids=(100,)))}, "beyond the vocabulary"),
        ({"logprobs": (SURE, SURE._replace(logprob=math.nan))}, "no finite numbers"),
        ({"logprobs": (SURE, SURE._replace(top_logprobs=(-math.inf,)))}, "no finite numbers"),
        ({"verify_ms": math.nan}, "out of its range"),
        ({"wait_ms": -1.0}, "out of its range"),
        ({"probability_min": math.inf}, "out of its range"),
        ({"cutoff_ms": math.nan}, "out of its range"),
        ({"num_cached_tokens": 4}, "out of its range"),
    ],
)
def test_a_verdict_that_cannot_be_is_a_violation(changes: dict[str, object], words: str) -> None:
    RULES.check_verdict(GOOD, line())
    with pytest.raises(ProtocolViolationError, match=words):
        RULES.check_verdict(replace(GOOD, **changes), line())


def test_log_probabilities_that_nobody_asked_for_are_a_violation() -> None:
    rules = RULES._replace(num_logprobs=None)
    rules.check_verdict(replace(GOOD, logprobs=()), line())
    with pytest.raises(ProtocolViolationError, match="and 0 are due"):
        rules.check_verdict(GOOD, line())


def test_as_many_alternatives_as_the_vocabulary_has_are_enough() -> None:
    small = VerdictRules(RULES.ending, vocab_size=2, max_draft_tokens=0, num_logprobs=20)
    whole = TokenLogprobs(-0.7, (0, 1), (-0.7, -0.7))
    small.check_verdict(
        Verdict(position=1, token_ids=[0], num_accepted=0, num_draft_tokens=0, logprobs=(whole,)), Line([1])
    )


@pytest.mark.parametrize("end", [EOS, STOP])
def test_nothing_follows_the_end_and_what_was_said_may_be_said_again(end: int) -> None:
    last = Verdict(position=3, token_ids=[end], num_accepted=0, num_draft_tokens=0, logprobs=(SURE,))
    RULES.check_verdict(last, line())
    RULES.check_verdict(last, line(end))
    with pytest.raises(ProtocolViolationError, match="after the end"):
        RULES.check_verdict(replace(last, position=4, token_ids=[10]), line(end))


@pytest.mark.parametrize(
    ("generated", "due"),
    [
        ((10, EOS), FinishReason.EOS),
        ((STOP,), FinishReason.STOP_TOKEN),
        ((10, 11, 12, 13, 14, 15), FinishReason.LENGTH),
        ((10,), None),
        ((), None),
    ],
)
def test_an_end_has_its_cause(generated: tuple[int, ...], due: FinishReason | None) -> None:
    for reason in FinishReason:
        if reason is due:
            RULES.check_finished(reason, line(*generated))
        else:
            with pytest.raises(ProtocolViolationError, match=f"by {reason.name}; by the request's rules"):
                RULES.check_finished(reason, line(*generated))


def test_a_prompt_that_ends_in_an_end_of_text_token_is_no_end() -> None:
    prompt = Line([7, EOS])
    RULES.check_verdict(replace(GOOD, position=2), prompt)
    with pytest.raises(ProtocolViolationError):
        RULES.check_finished(FinishReason.EOS, prompt)


def test_a_verifier_opens_the_line_that_it_was_given() -> None:
    RULES.check_opened(3, line())
    with pytest.raises(ProtocolViolationError, match="4 tokens, which has 3"):
        RULES.check_opened(4, line())
