"""N-gram tables in machine code answer as those in Python do: the same tokens in the same order with the same bits."""

from __future__ import annotations

import random
from ctypes import PyDLL

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from outrider.core.propose.lookup import Ngrams
from outrider.core.propose.ngram import HISTORY_TOKENS_MAX, NgramTable, extend
from outrider.core.propose.ngram_static import VOCAB_SIZE_MAX, StaticNgrams, StaticOrder
from outrider.core.protocol.tree import Node
from outrider.lookup.ngrams import NativeNgrams, NativeNgramTable

TOKEN_IDS = st.integers(0, 4) | st.sampled_from([VOCAB_SIZE_MAX - 1, VOCAB_SIZE_MAX - 2])
TOKENS = st.lists(TOKEN_IDS, max_size=12)


@st.composite
def static_tables(draw: st.DrawFn) -> StaticNgrams:
    """Of any orders and widths, with rows of equal shares, full ones and empty ones."""
    width = draw(st.integers(1, 3))
    orders: dict[int, StaticOrder] = {}
    for num_tokens in draw(st.sets(st.sampled_from([1, 2, 3]), min_size=1)):
        contexts = sorted(draw(st.sets(st.tuples(*[TOKEN_IDS] * num_tokens).map(packed), max_size=8)))
        row = st.lists(st.integers(0, 255 // width), min_size=width, max_size=width)
        columns = draw(st.lists(row, min_size=len(contexts), max_size=len(contexts)))
        ids = st.lists(TOKEN_IDS, min_size=len(contexts) * width, max_size=len(contexts) * width)
        orders[num_tokens] = StaticOrder(contexts, draw(ids), [share for shares in columns for share in shares])
    return StaticNgrams(orders, width=width, vocab_size=VOCAB_SIZE_MAX)


def packed(token_ids: tuple[int, ...]) -> int:
    context = 0
    for token_id in token_ids:
        context = extend(context, token_id)
    return context


def answer(table: Ngrams, path: list[int]) -> list[tuple[int, float]]:
    root = node = Node(None, 0, 0, 0.0)
    for token_id in path:
        node = Node(node, node.position + 1, token_id, 0.0)
    return list(table.after(root, node).items())


class Same(RuleBasedStateMachine):
    """Both tables go through the same rounds: paths are asked about, and then others, or parts of them, are decided."""

    library: PyDLL

    @initialize(static=st.none() | static_tables())
    def begin(self, static: StaticNgrams | None) -> None:
        self.table = NgramTable(static=static)
        self.native = NativeNgrams(self.library, static).table()

    @rule(token_ids=TOKENS)
    def read(self, token_ids: list[int]) -> None:
        self.table.read(token_ids)
        self.native.read(token_ids)

    @rule(paths=st.lists(TOKENS, max_size=4), token_ids=TOKENS)
    def decide(self, paths: list[list[int]], token_ids: list[int]) -> None:
        for path in [[], *paths]:
            assert answer(self.native, path) == answer(self.table, path)
        self.table.commit(token_ids)
        self.native.commit(token_ids)
        assert self.native.trust == self.table.trust
        assert answer(self.native, []) == answer(self.table, [])


def test_every_answer_is_the_same(native: PyDLL) -> None:
    class OfThisLibrary(Same):
        library = native

    machine = OfThisLibrary.TestCase("runTest")
    machine.settings = settings(max_examples=60, stateful_step_count=10)
    machine.runTest()


@given(seed=st.integers(0, 99), num_ids=st.sampled_from([3, 40, 3000]))
@settings(max_examples=3)
def test_what_is_forgotten_is_the_same(native: PyDLL, seed: int, num_ids: int) -> None:
    chance = random.Random(seed)
    line = [chance.randrange(num_ids) for _ in range(HISTORY_TOKENS_MAX + 500)]
    tables: list[NgramTable | NativeNgramTable] = [NgramTable(), NativeNgrams(native).table()]
    for table in tables:
        table.read(line)
    for _ in range(50):
        start = chance.randrange(len(line) - 8)
        one, other = (answer(table, line[start : start + 4]) for table in tables)
        assert one == other
        for table in tables:
            table.commit(line[start : start + 6])
        assert tables[0].trust == tables[1].trust


def test_no_answer_is_of_another_line(native: PyDLL) -> None:
    maker = NativeNgrams(native)
    one, other = maker.table(), maker.table()
    one.read([1, 2, 3, 1, 2])
    assert answer(one, []) == [(3, pytest.approx(0.75))]
    assert answer(other, [1, 2]) == []


@pytest.mark.parametrize("token_id", [-1, 1 << 32])
def test_what_is_no_token_id_is_refused(native: PyDLL, token_id: int) -> None:
    with pytest.raises(OverflowError):
        NativeNgrams(native).table().commit([token_id])
