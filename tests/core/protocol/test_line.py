"""The line grows at its end, once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.line import Line


def test_a_commit_at_the_end_is_new() -> None:
    line = Line([5, 6])
    assert line.commit(2, [7, 8]) == [7, 8]
    assert line.token_ids == [5, 6, 7, 8]
    assert (line.num_prompt_tokens, line.num_generated_tokens, len(line)) == (2, 2, 4)


def test_a_resumed_line_tells_prompt_from_output() -> None:
    line = Line([5, 6, 7], num_prompt_tokens=1)
    assert line.num_generated_tokens == 2


def test_a_line_keeps_no_hold_of_what_it_was_made_from() -> None:
    prompt = [5, 6]
    Line(prompt).commit(2, [7])
    assert prompt == [5, 6]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.lists(st.integers(0, 9), max_size=8), st.data())
def test_any_part_of_the_past_followed_by_news_adds_the_news(
    past: list[int], news: list[int], data: st.DataObject
) -> None:
    line = Line(past)
    position = data.draw(st.integers(0, len(past)))
    assert list(line.commit(position, past[position:] + news)) == news
    assert line.token_ids == past + news
    assert not line.commit(position, past[position:] + news)
    assert line.token_ids == past + news


def test_a_commit_inside_the_past_changes_nothing() -> None:
    line = Line([5, 6, 7])
    assert not line.commit(1, [6])
    assert line.token_ids == [5, 6, 7]


@pytest.mark.parametrize(
    ("position", "token_ids", "message"),
    [
        (4, [8], "leaves a gap"),
        (4, [], "leaves a gap"),
        (1, [9], "contradicts"),
        (2, [9, 9], "contradicts"),
        (-1, [7], "contradicts"),
    ],
)
def test_a_gap_and_a_contradiction_are_refused_and_change_nothing(
    position: int, token_ids: list[int], message: str
) -> None:
    line = Line([5, 6, 7])
    with pytest.raises(ProtocolViolationError, match=message):
        line.commit(position, token_ids)
    assert line.token_ids == [5, 6, 7]
