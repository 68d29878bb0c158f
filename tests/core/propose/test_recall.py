"""Recall: a line goes on as a recent answer did, and what is asked about a path equals what is asked once it came."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.propose.recall import Recall
from outrider.core.propose.recent_answers import RecentAnswers
from outrider.core.protocol.line import Line
from outrider.core.protocol.tree import Node

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=30)


def begun(line: list[int], *added: list[int]) -> Recall:
    answers = RecentAnswers()
    for token_ids in added:
        answers.add(token_ids)
    recall = Recall(answers, Line(line))
    recall.prepare()
    return recall


def after(recall: Recall, root: Node, path: list[int]) -> dict[int, float]:
    node = root
    for token_id in path:
        node = Node(node, node.position + 1, token_id, 0.0)
    return dict(recall.propose(root, node))


def root_of(recall: Recall) -> Node:
    return Node(None, len(recall._line) - 1, recall._line.token_ids[-1], 0.0)


def commit(recall: Recall, token_ids: list[int]) -> None:
    recall._line.commit(len(recall._line), token_ids)
    recall.commit(token_ids)


def test_before_anything_was_answered_it_has_nothing_to_say() -> None:
    assert not Recall(RecentAnswers(), Line([1, 2, 3, 4])).prepare()


def test_a_line_goes_on_as_an_answer_did() -> None:
    recall = begun([9, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7])
    root = root_of(recall)
    assert after(recall, root, []) == {5: pytest.approx(5 / 6)}
    assert after(recall, root, [5]) == {6: pytest.approx(6 / 7)}
    assert after(recall, root, [5, 6, 7]) == {}
    assert after(recall, root, [5, 9]) == {7: pytest.approx(1 / 3)}


def test_an_answer_is_left_where_it_says_something_else_for_long() -> None:
    recall = begun([1, 2, 3, 4], [1, 2, 3, 4, *range(10, 30)])
    root = root_of(recall)
    assert after(recall, root, [9, 9, 9, 9]) == {14: pytest.approx(1 / 6)}
    assert after(recall, root, [9, 9, 9, 9, 9]) == {}


def test_behind_what_was_inserted_the_place_is_found_again() -> None:
    recall = begun([1, 2, 3, 4], [1, 2, 3, 4, *range(10, 30)])
    root = root_of(recall)
    assert 14 in after(recall, root, [9, 8, 7, 6, 5, 4, 10, 11, 12, 13])


@given(answer=TOKENS, line=TOKENS, committed=TOKENS)
def test_after_a_path_it_guesses_as_if_the_path_had_been_committed(
    answer: list[int], line: list[int], committed: list[int]
) -> None:
    one, other = begun(line, answer), begun(line, answer)
    for recall in (one, other):
        after(recall, root_of(recall), [])
    for count in range(1, len(committed) + 1):
        commit(other, [committed[count - 1]])
        other.prepare()
        assert after(one, root_of(one), committed[:count]) == after(other, root_of(other), [])


def test_a_question_has_the_same_answer_until_the_next_commit_whatever_others_were_answered() -> None:
    answers = RecentAnswers()
    answers.add([1, 2, 3, 4, 5])
    recall = Recall(answers, Line([1, 2, 3, 4]))
    recall.prepare()
    root = root_of(recall)
    first = recall.propose(root, root)
    answers.add([7, 1, 2, 3, 4, 6])
    answers.read()
    assert recall.propose(root, root) == first == {5: pytest.approx(5 / 6)}


def test_a_line_that_went_on_unseen_is_found_anew() -> None:
    recall = begun([1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    assert after(recall, root_of(recall), []) == {5: pytest.approx(5 / 6)}
    recall._line.commit(4, [5, 6, 7, 8])
    assert after(recall, root_of(recall), []) == {9: pytest.approx(9 / 10)}
    recall._line.commit(8, [9])
    commit(recall, [0])
    assert after(recall, root_of(recall), []) == {}


def test_the_end_makes_the_answer_a_recent_one_without_its_prompt() -> None:
    answers = RecentAnswers()
    line = Line([1, 2, 3, 4])
    line.commit(4, [5, 6, 7, 8, 9])
    Recall(answers, line).end()
    answers.read()
    assert answers.find([5, 6, 7, 8]) is not None
    assert answers.find([1, 2, 3, 4]) is None
    assert answers.find([2, 3, 4, 5]) is None
