"""A prediction is followed while it is right, found again after a departure, and quiet where it has nothing to say."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from outrider.core.propose.alignment import ORDERS, READ_TOKENS, Alignment
from outrider.core.propose.prediction import Prediction
from outrider.core.protocol.line import Line
from outrider.core.protocol.tree import Node, SpeculationTree

PROMPT = [7, 8, 9]
TEXT = random.Random(1).choices(range(100, 160), k=400)
"""Of 60 words: each stands in it some seven times."""


def guessed(prediction: Sequence[int], output: Sequence[int]) -> list[bool]:
    """For each token of the output whether it was what the prediction had there."""
    alignment = Alignment(prediction)
    found: list[bool] = []
    for token_id in output:
        found.append(alignment.expected(alignment.place) == token_id)
        alignment.follow(token_id)
    return found


def num_wrong(prediction: Sequence[int], output: Sequence[int]) -> int:
    return guessed(prediction, output).count(False)


def test_an_identical_prediction_is_right_from_the_first_token_on() -> None:
    assert all(guessed(TEXT, TEXT))


@pytest.mark.parametrize("changed", [0, 1, 37, 200, 399])
def test_a_changed_word_costs_itself_alone(changed: int) -> None:
    output = [*TEXT[:changed], 1, *TEXT[changed + 1 :]]
    assert [index for index, right in enumerate(guessed(TEXT, output)) if not right] == [changed]


@pytest.mark.parametrize("first", [0, 5, 100, 300])
def test_a_block_that_is_left_out_costs_the_tokens_by_which_the_place_is_found(first: int) -> None:
    output = [*TEXT[:first], *TEXT[first + 60 :]]
    assert 1 <= num_wrong(TEXT, output) <= ORDERS[0] + 1


@pytest.mark.parametrize("first", [0, 5, 100, 300])
def test_a_block_that_is_put_in_costs_itself_and_the_tokens_by_which_the_place_is_found(first: int) -> None:
    block = random.Random(2).choices(range(200, 300), k=40)
    output = [*TEXT[:first], *block, *TEXT[first:]]
    assert len(block) <= num_wrong(TEXT, output) <= len(block) + ORDERS[0]


def test_a_block_that_was_moved_is_found_where_it_is() -> None:
    output = [*TEXT[:100], *TEXT[200:300], *TEXT[100:200], *TEXT[300:]]
    assert num_wrong(TEXT, output) <= 3 * (ORDERS[0] + 1)


def test_an_unrelated_prediction_is_never_right() -> None:
    assert not any(guessed([token_id + 500 for token_id in TEXT], TEXT))


def test_beyond_its_end_and_where_it_is_empty_it_says_nothing() -> None:
    alignment = Alignment(TEXT[:3])
    for token_id in TEXT[:3]:
        alignment.follow(token_id)
    assert alignment.expected(alignment.place) is None
    assert Alignment([]).expected(Alignment([]).place) is None


def test_the_tokens_that_appeared_are_counted_once_each() -> None:
    alignment = Alignment(TEXT[:50])
    for token_id in [*TEXT[:20], 1, *TEXT[21:40], *TEXT[:50]]:
        alignment.follow(token_id)
    # The changed word came with the second time, but for the tokens by which the beginning was found again.
    assert 50 - ORDERS[0] - 1 <= alignment.num_appeared <= 50


def test_a_surer_place_promises_more() -> None:
    line = Line(PROMPT)
    prediction = Prediction(TEXT, line)
    tree = SpeculationTree(len(PROMPT) - 1, PROMPT[-1])
    promised: list[float] = []
    for token_id in [*TEXT[:20], 1, *TEXT[21:24]]:
        assert prediction.prepare()
        [probability] = prediction.propose(tree.root, tree.root).values()
        promised.append(probability)
        line.commit(len(line), [token_id])
        tree.commit([token_id])
        prediction.commit([token_id])
    assert promised[:21] == sorted(promised[:21])
    assert promised[21] < promised[22] < promised[23] <= promised[0] < promised[20] < 1


def path(root: Node, token_ids: Sequence[int]) -> Node:
    node = root
    for token_id in token_ids:
        node = Node(node, node.position + 1, token_id, -0.1, -0.1)
    return node


def test_below_a_path_it_guesses_as_if_the_path_had_been_committed() -> None:
    dice = random.Random(3)
    for _ in range(200):
        start = dice.randrange(300)
        written = [*TEXT[:start], *([1] * dice.randrange(3))]
        ahead = [
            dice.choice((token_id, 2)) if dice.random() < 0.2 else token_id for token_id in TEXT[start : start + 9]
        ]
        found: list[object] = []
        for committed, guesses in ((written, ahead), ([*written, *ahead], [])):
            line = Line([*PROMPT, *committed], len(PROMPT))
            prediction = Prediction(TEXT, line)
            while not prediction.prepare():
                pass
            root = SpeculationTree(len(line) - 1, line.token_ids[-1]).root
            node = path(root, guesses)
            found.append(prediction.propose(root, node))
            assert prediction.propose(root, node) == found[-1]
        assert found[0] == found[1]


def test_what_is_about_to_be_committed_is_judged_place_by_place() -> None:
    prediction = Prediction(TEXT, Line(PROMPT))
    assert prediction.prepare()
    output = [*TEXT[:5], 1, *TEXT[6:10]]
    judged = list(prediction.guesses(output))
    assert [token_id for token_id, _ in judged] == output
    assert [[guess for guess, _ in guesses] for _, guesses in judged] == [[token_id] for token_id in TEXT[:10]]


def test_a_line_that_was_written_before_is_followed_over_several_rounds() -> None:
    """As after a verifier was lost."""
    line = Line([*PROMPT, *TEXT[:100]], len(PROMPT))
    prediction = Prediction(TEXT, line)
    root = SpeculationTree(len(line) - 1, line.token_ids[-1]).root
    num_rounds = 1
    while not prediction.prepare():
        num_rounds += 1
        assert list(prediction.guesses([1])) == []
    assert 1 < num_rounds < 20
    assert list(prediction.propose(root, root)) == [TEXT[100]]


def test_what_was_decided_while_nobody_asked_is_caught_up_with() -> None:
    """As while speculation is paused."""
    line = Line(PROMPT)
    prediction = Prediction(TEXT, line)
    line.commit(len(line), TEXT[:3])
    prediction.commit(TEXT[1:3])
    assert prediction.prepare()
    root = SpeculationTree(len(line) - 1, line.token_ids[-1]).root
    assert list(prediction.propose(root, root)) == [TEXT[3]]


class Counted(list[int]):
    """Counts how often one of its tokens is looked at."""

    num_looks = 0

    def __getitem__(self, index: object) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.num_looks += 1
        return super().__getitem__(index)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_a_token_costs_the_same_however_long_the_prediction_is() -> None:
    looks: list[int] = []
    for length in (1_000, 16_000):
        text = Counted((TEXT * 40)[:length])
        alignment = Alignment(text)
        most = 0
        for token_id in [*TEXT[:50], *[1, 2, 3] * 20, *TEXT[90:200]]:
            text.num_looks = 0
            alignment.follow(token_id)
            most = max(most, text.num_looks)
        looks.append(most)
    assert looks[0] == looks[1] <= READ_TOKENS + 2
