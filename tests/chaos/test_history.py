"""The checker of histories finds whatever is not as it should be."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .history import History


def history(*rounds: tuple[int, list[int]], finished: bool = True) -> History:
    found = History(3)
    for time, (position, token_ids) in enumerate(rounds):
        found.on_tokens(float(time), position, token_ids, "".join(map(str, token_ids)))
    if finished:
        found.on_finished(9.0)
    return found


UNDISTURBED = history((3, [5]), (4, [6, 7]))


def test_however_tokens_come_they_are_the_same_answer() -> None:
    assert history((3, [5, 6]), (5, [7])).against(UNDISTURBED) == []


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (lambda: history((3, [5]), (5, [7])), "a token at 5, where 4 was next"),
        (lambda: history((3, [5, 6]), (4, [6, 7])), "the token at 4 came again"),
        (lambda: history((3, [5, 8]), (4, [6, 7])), "the token at 4 changed from 8 to 6"),
        (lambda: history((3, [5, 6])), "2 tokens, undisturbed 3; first difference at None"),
        (lambda: history((3, [5, 8, 7])), "3 tokens, undisturbed 3; first difference at 1"),
        (lambda: history((3, [5, 6, 7]), finished=False), "no end"),
    ],
)
def test_what_is_wrong_is_told(found: Callable[[], History], what: str) -> None:
    assert what in found().against(UNDISTURBED)


def test_nothing_comes_after_the_end() -> None:
    found = history((3, [5]), (4, [6, 7]))
    found.on_tokens(10.0, 6, [], "")
    found.on_finished(11.0)
    assert found.against(UNDISTURBED) == ["tokens at 6 after the end", "a second end"]


def test_the_text_is_compared_too() -> None:
    found = history((3, [5]), (4, [6, 7]))
    found.text += "!"
    assert found.against(UNDISTURBED) == ["another text than undisturbed"]


def test_the_longest_silence_is_that_around_a_moment() -> None:
    found = history((3, [5]), (4, [6]), finished=False)  # at 0 and 1
    found.on_tokens(4.0, 5, [7], "")
    assert found.silence(2.0, 3.0) == 3.0
    assert found.silence(0.2, 0.3) == 1.0
    assert found.silence(5.0, 6.0) == 0.0
