"""Lines are known by content, wherever their rows go."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence

from outrider.vllm.matcher import TAIL_TOKENS, Match, Matcher, Row


def row(line: Sequence[int], num_new: int = 1) -> Row:
    return Row(lambda start, end: array("i", line[start:end]).tobytes(), len(line), num_new)


def test_a_line_keeps_its_number_when_its_row_moves() -> None:
    matcher = Matcher()
    assert matcher.match([row([1, 2]), row([3, 4, 5])]) == [Match(1, is_new=True), Match(2, is_new=True)]
    assert matcher.match([row([3, 4, 5, 6, 7], 2), row([1, 2, 3])]) == [Match(2, is_new=False), Match(1, is_new=False)]


def test_a_row_that_goes_on_otherwise_is_another_line() -> None:
    matcher = Matcher()
    matcher.match([row([1, 2])])
    assert matcher.match([row([1, 9, 3])]) == [Match(2, is_new=True)]


def test_a_prompt_that_is_read_in_parts_stays_one_line() -> None:
    matcher = Matcher()
    assert matcher.match([row([1, 2, 3], 0)]) == [Match(1, is_new=True)]
    assert matcher.match([row([1, 2, 3], 0)]) == [Match(1, is_new=False)]
    assert matcher.match([row([1, 2, 3, 4], 1)]) == [Match(1, is_new=False)]


def test_equal_lines_are_given_one_row_each() -> None:
    matcher = Matcher()
    assert [match.number for match in matcher.match([row([1, 2]), row([1, 2])])] == [1, 2]
    assert [match.number for match in matcher.match([row([1, 2, 3]), row([1, 2, 4])])] == [1, 2]
    assert [match.number for match in matcher.match([row([1, 2, 4, 5]), row([1, 2, 3, 5])])] == [2, 1]


def test_lines_that_differ_before_their_tails_are_told_apart() -> None:
    tail = [7] * TAIL_TOKENS
    matcher = Matcher()
    matcher.match([row([1, *tail]), row([2, *tail])])
    again = matcher.match([row([2, *tail, 8]), row([1, *tail, 8])])
    assert [match.number for match in again] == [2, 1]


def test_a_line_may_come_to_be_like_what_another_was() -> None:
    matcher = Matcher()
    matcher.match([row([1, 1]), row([1])])
    again = matcher.match([row([1, 1, 1]), row([1, 1])])
    assert [match.number for match in again] == [1, 2]


def test_a_forgotten_line_is_new_again_and_leaves_nothing() -> None:
    matcher = Matcher()
    matcher.match([row([1, 2])])
    matcher.forget([1, 1])
    assert len(matcher) == 0
    assert matcher.match([row([1, 2, 3])]) == [Match(2, is_new=True)]


def test_random_batches_keep_their_lines() -> None:
    """Rows are shuffled and left out for some steps, and lines of few tokens differ at their very beginning alone."""
    for seed in range(40):
        chance = random.Random(seed)
        matcher, numbers = Matcher(), dict[int, int]()
        lines = {key: [key, *[0] * chance.randrange(20, 23)] for key in range(2, 8)}
        for step in range(40):
            present = chance.sample(sorted(lines), chance.randrange(1, len(lines) + 1) if step else len(lines))
            rows: list[Row] = []
            for key in present:
                new = [0] * chance.randrange(0, 3)
                lines[key] += new
                rows.append(row(list(lines[key]), len(new)))
            for key, match in zip(present, matcher.match(rows), strict=True):
                assert match.is_new == (step == 0)
                assert numbers.setdefault(key, match.number) == match.number
        assert len(set(numbers.values())) == len(numbers)
