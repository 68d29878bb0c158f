"""The n-gram table: what a line tells about its own continuation, and what a static table adds."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.propose import ngram
from outrider.core.propose.ngram import (
    OCCURRENCES_MAX,
    ORDERS,
    PROBABILITY_MAX,
    GuessTree,
    NgramTable,
    extend,
    path_context,
)
from outrider.core.propose.ngram_static import SHARE_UNIT, TOKEN_BITS, VOCAB_SIZE_MAX, StaticNgrams, StaticOrder
from outrider.core.protocol.tree import SpeculationTree


def packed(token_ids: Sequence[int]) -> int:
    context = 0
    for token_id in token_ids:
        context = extend(context, token_id)
    return context


def guessed(table: NgramTable, *path: int, limit: int = 8) -> list[int]:
    """Token ids guessed after the line and `path`, best first."""
    context = table.context
    for token_id in path:
        context = extend(context, token_id)
    return [guess.token_id for guess in table.guesses(context, limit)]


def static_table() -> StaticNgrams:
    """After 7: 5 with probability 102/255, then 6 with 51/255; after (8, 7): 9 with 153/255."""
    orders = {
        1: StaticOrder(contexts=[7], token_ids=[5, 6], shares=[102, 51]),
        2: StaticOrder(contexts=[packed([8, 7])], token_ids=[9, 0], shares=[153, 0]),
    }
    return StaticNgrams(orders, width=2, vocab_size=100)


def test_nothing_is_guessed_without_a_past() -> None:
    table = NgramTable([])
    assert table.guesses(table.context, 8) == []
    assert table.tree(table.context, limit=8, width=2) == GuessTree([], [], [])
    assert guessed(NgramTable([1, 2, 3])) == []


def test_what_followed_before_is_guessed() -> None:
    table = NgramTable([1, 2, 3, 4, 1, 2])
    assert guessed(table) == [3]
    assert guessed(table, 3) == [4]
    assert guessed(table, 3, 4) == [1]
    assert guessed(table, 9) == []


def test_the_longest_match_speaks_first() -> None:
    # After 2 alone: 9 four times, 3 once. After 1 2: 3.
    table = NgramTable([1, 2, 3, 5, 2, 9, 6, 2, 9, 7, 2, 9, 8, 2, 9, 1, 2])
    assert guessed(table) == [3, 9]
    assert guessed(NgramTable([*[5, 2, 9, 6, 2, 9, 7, 2, 9, 8, 2, 9], 4, 2])) == [9]


def test_of_equal_counts_the_recent_one_comes_first() -> None:
    assert guessed(NgramTable([1, 2, 1, 3, 1])) == [3, 2]
    assert guessed(NgramTable([1, 3, 1, 2, 1])) == [2, 3]


def test_the_frequent_one_comes_before_the_recent_one() -> None:
    assert guessed(NgramTable([1, 2, 1, 2, 1, 3, 9, 1])) == [2, 3]


def test_shares_are_those_of_witten_and_bell() -> None:
    # After 9, with no longer match: 1 twice, 2 once; N = 3, u = 2.
    table = NgramTable([9, 1, 9, 1, 9, 2, 9])
    fresh = extend(packed([5, 6, 7]), 9)
    assert table.trust == 1.0
    assert table.guesses(fresh, 8) == [(1, pytest.approx(2 / 5)), (2, pytest.approx(1 / 5))]
    # After 1 9, a match of two: 1 and 2 once each, N = u = 2; the other half is left to the order below.
    longer = table.guesses(packed([5, 6, 1, 9]), 8)
    assert longer == [(1, pytest.approx(1 / 4 + 2 / 5 / 2)), (2, pytest.approx(1 / 4 + 1 / 5 / 2))]


def test_old_occurrences_do_not_count() -> None:
    table = NgramTable([*[1, 2] * 20, *[1, 3] * OCCURRENCES_MAX])
    assert guessed(table, 5, 1) == [3]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 3))
def test_probabilities_are_probabilities(line: list[int], token_id: int) -> None:
    table = NgramTable(line[:20])
    table.commit(line[20:])
    guesses = table.guesses(extend(table.context, token_id), VOCAB_SIZE_MAX)
    assert sum(guess.probability for guess in guesses) <= PROBABILITY_MAX + 1e-9
    assert all(guess.probability > 0 for guess in guesses)
    assert guesses == sorted(guesses, key=lambda guess: -guess.probability)
    assert len({guess.token_id for guess in guesses}) == len(guesses)
    assert guesses[:2] == table.guesses(extend(table.context, token_id), 2)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_a_line_known_at_once_and_one_committed_in_pieces_are_the_same(line: list[int]) -> None:
    whole, pieces = NgramTable(line), NgramTable(line[:1])
    for token_id in line[1:]:
        pieces.commit([token_id])
    assert whole.context == pieces.context
    context = whole.context
    expected = [guess.token_id for guess in whole.guesses(context, 8)]
    assert [guess.token_id for guess in pieces.guesses(context, 8)] == expected


def test_trust_falls_with_wrong_guesses_and_returns_with_right_ones() -> None:
    table = NgramTable([1, 2, 3, 4] * 4)
    before = table.guesses(packed([1, 2, 3, 4]), 1)[0]
    rng = random.Random(2)
    table.commit([rng.choice([1, 2, 3, 4]) for _ in range(100)])
    assert table.trust < 0.8
    shaken = table.guesses(packed([1, 2, 3, 4]), 1)[0]
    assert shaken.token_id == before.token_id == 1
    assert shaken.probability < 0.9 * before.probability
    table.commit([1, 2, 3, 4] * 60)
    assert table.trust > 0.95


def test_trust_learns_nothing_where_nothing_was_guessed() -> None:
    table = NgramTable([1])
    table.commit(range(2, 40))
    assert table.trust == 1.0


def test_a_chain_goes_on_where_the_text_repeats_itself() -> None:
    table = NgramTable([1, 2, 3, 4, 5] * 3)
    chain = table.tree(table.context, limit=7, width=1)
    assert chain.parents == [-1, 0, 1, 2, 3, 4, 5]
    assert chain.token_ids == [1, 2, 3, 4, 5, 1, 2]
    assert chain.probabilities == sorted(chain.probabilities, reverse=True)


def test_a_tree_holds_the_most_probable_paths_parents_first() -> None:
    rng = random.Random(3)
    table = NgramTable([rng.choice([1, 1, 2, 3]) for _ in range(400)])
    tree = table.tree(table.context, limit=12, width=2)
    assert len(tree.parents) == len(tree.token_ids) == len(tree.probabilities) == 12
    assert tree.probabilities == sorted(tree.probabilities, reverse=True)
    paths = {-1: table.context}
    children: dict[int, list[int]] = {}
    for node, (parent, token_id) in enumerate(zip(tree.parents, tree.token_ids, strict=True)):
        assert parent < node
        paths[node] = extend(paths[parent], token_id)
        children.setdefault(parent, []).append(token_id)
        guess = next(guess for guess in table.guesses(paths[parent], 2) if guess.token_id == token_id)
        above = 1.0 if parent == -1 else tree.probabilities[parent]
        assert tree.probabilities[node] == pytest.approx(above * guess.probability)
    assert max(map(len, children.values())) == 2
    assert all(len(set(siblings)) == len(siblings) for siblings in children.values())
    # No path that was left out is more probable than one that was taken.
    taken = {paths[node] for node in range(12)}
    for parent, context in paths.items():
        above = 1.0 if parent == -1 else tree.probabilities[parent]
        for guess in table.guesses(context, 2):
            if extend(context, guess.token_id) not in taken:
                assert above * guess.probability <= tree.probabilities[-1] + 1e-12


def test_improbable_paths_are_left_out() -> None:
    table = NgramTable([1, 2, 3, 4, 5] * 3)
    everything = table.tree(table.context, limit=30, width=1)
    cut = table.tree(table.context, limit=30, width=1, min_probability=0.9)
    assert 0 < len(cut.parents) < len(everything.parents)
    assert cut.probabilities == [each for each in everything.probabilities if each >= 0.9]


def test_what_is_older_than_the_history_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram, "HISTORY_TOKENS_MAX", 32)
    table = NgramTable([1, 2, 3, 4])
    table.commit(range(100, 131))
    assert guessed(table, 2, 3) == [4]
    table.commit([131])
    assert guessed(table, 2, 3) == []
    assert guessed(table, 100) == [101]
    assert sum(len(order.followers) for order in table._orders) <= len(ORDERS) * 32


def test_a_short_history_holds_what_a_table_of_its_newest_tokens_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram, "HISTORY_TOKENS_MAX", 16)
    rng = random.Random(5)
    line = [rng.randrange(4) for _ in range(200)]
    table = NgramTable(line)
    for order, num_tokens in zip(table._orders, ORDERS, strict=True):
        held = {packed(line[last - num_tokens : last]) for last in range(200 - 16, 200)}
        assert set(order.followers) == held
        for key, position in order.followers.items():
            assert line[position] in range(4)
            assert packed(line[position - num_tokens : position]) == key
            assert position >= 200 - 16


def test_the_bound_of_the_history_is_no_bound_of_the_line() -> None:
    table = NgramTable([1, 2, 3] * (ngram.HISTORY_TOKENS_MAX // 2))
    assert guessed(table) == [1]


def test_the_largest_token_ids_are_told_apart() -> None:
    largest = VOCAB_SIZE_MAX - 1
    table = NgramTable([largest, largest - 1, 0, largest, largest - 1])
    assert guessed(table) == [0]
    assert guessed(table, 0) == [largest]


def test_a_static_table_speaks_where_the_line_knows_nothing() -> None:
    table = NgramTable([1, 7], static_table())
    assert table.guesses(table.context, 8) == [(5, pytest.approx(0.4)), (6, pytest.approx(0.2))]
    assert table.guesses(table.context, 1) == [(5, pytest.approx(0.4))]
    assert guessed(table, 42) == []


def test_a_static_tables_longer_order_leaves_the_rest_to_the_shorter_one() -> None:
    table = NgramTable([8, 7], static_table())
    assert table.guesses(table.context, 8) == [
        (9, pytest.approx(0.6)),
        (5, pytest.approx(0.4 * 0.4)),
        (6, pytest.approx(0.4 * 0.2)),
    ]


def test_the_line_stands_above_the_static_table() -> None:
    # After 7 the line knows 3, once: N = u = 1, so that half is left to the static table.
    table = NgramTable([7, 3, 1, 7], static_table())
    assert table.guesses(table.context, 8) == [
        (3, pytest.approx(0.5)),
        (5, pytest.approx(0.5 * 0.4)),
        (6, pytest.approx(0.5 * 0.2)),
    ]


def order(contexts: Sequence[int], token_ids: Sequence[int], shares: Sequence[int]) -> StaticOrder:
    return StaticOrder(contexts, token_ids, shares)


@pytest.mark.parametrize(
    ("orders", "width", "text"),
    [
        ({}, 1, "no n-grams"),
        ({1: order([], [], [])}, 0, "no n-grams"),
        ({4: order([1], [1], [1])}, 1, "contexts of 4 tokens"),
        ({1: order([1, 2], [1], [1, 1])}, 1, "do not have 1 continuations"),
        ({1: order([1], [1], [1, 1])}, 1, "do not have 1 continuations"),
        ({1: order([2, 1], [1, 1], [1, 1])}, 1, "ascending"),
        ({1: order([1, 1], [1, 1], [1, 1])}, 1, "ascending"),
        ({1: order([-1], [1], [1])}, 1, "less or more"),
        ({1: order([1 << TOKEN_BITS], [1], [1])}, 1, "less or more"),
        ({1: order([1], [100], [1])}, 1, "token id 100 is out of range"),
        ({1: order([1], [-1], [1])}, 1, "token id -1 is out of range"),
        ({1: order([1], [1, 2], [SHARE_UNIT, 1])}, 2, "exceed 1"),
    ],
)
def test_a_static_table_that_is_not_in_order_is_refused(orders: dict[int, StaticOrder], width: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        StaticNgrams(orders, width=width, vocab_size=100)


def test_probabilities_stay_finite_as_logarithms() -> None:
    rng = random.Random(1)
    table = NgramTable([rng.randrange(3) for _ in range(300)])
    tree = table.tree(table.context, limit=256, width=8)
    assert len(tree.parents) == 256
    assert all(math.isfinite(math.log(probability)) for probability in tree.probabilities)


@pytest.mark.parametrize("depth", range(ORDERS[0] + 3))
def test_the_context_of_a_node_is_the_end_of_its_path(depth: int) -> None:
    line = [11, 12, 13, 14, 15]
    tree = SpeculationTree(4, 15)
    # The root has a parent no longer, and others stand beside the path.
    node = tree.root
    for token_id in range(21, 21 + depth):
        tree.attach(node, 99, -1.0)
        child = tree.attach(node, token_id, -1.0)
        assert child is not None
        node = child
    longest = packed([2**21 - 1] * ORDERS[0])
    found = path_context(node, tree.root, packed(line))
    assert found & longest == packed([*line, *range(21, 21 + depth)])
