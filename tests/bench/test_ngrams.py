"""Counting how often n-gram guesses are right."""

from __future__ import annotations

from bench.micro.ngrams import Continuation, _acceptance_length, _committed, _measure
from outrider.core.propose.ngram import GuessTree

LOOP = Continuation([1, 2, 3, 4, 5] * 4, [1, 2, 3, 4, 5] * 4)


def test_a_loop_is_guessed_and_its_matches_are_long() -> None:
    figures = _measure([LOOP], None)
    everywhere, by_match = figures["all"], figures["by longest match"]
    assert (everywhere["num_places"], everywhere["first_right"], everywhere["one_of_3_right"]) == (20, 1.0, 1.0)
    assert by_match[4]["num_places"] == 20
    assert all(by_match[num_tokens]["num_places"] == 0 for num_tokens in (0, 1, 2, 3))
    assert figures["tokens per round"]["4 nodes of width 1"] == 5.0


def test_what_was_never_seen_is_no_match() -> None:
    figures = _measure([Continuation([1, 2], [3, 1, 2, 3])], None)
    by_match = figures["by longest match"]
    assert [by_match[num_tokens]["num_places"] for num_tokens in (0, 1, 2)] == [2, 1, 1]
    assert by_match[0]["first_right"] == 0.0
    assert by_match[1]["first_right"] == 1.0
    assert by_match[2]["first_right"] == 1.0


def test_a_round_commits_a_path_of_the_tree_and_one_token_more() -> None:
    tree = GuessTree([-1, -1, 0], [7, 8, 9], [0.5, 0.3, 0.2])
    assert _committed(tree, [7, 9, 4, 5]) == [7, 9, 4]
    assert _committed(tree, [8, 9, 4]) == [8, 9]
    assert _committed(tree, [1, 2]) == [1]
    assert _committed(tree, [7, 9]) == [7, 9]


def test_chains_as_deep_as_a_loop_is_long_commit_it_in_one_round() -> None:
    assert _acceptance_length([LOOP], None, 19, 1) == 20.0
