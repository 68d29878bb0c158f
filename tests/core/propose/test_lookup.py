"""The verifier's own guesses: what they are, how far they go, and that the tree never holds any of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from outrider.core.estimate.calibration import Calibration, decided
from outrider.core.estimate.confidence import VERIFY_PROBABILITIES, claim_bin, lookup_bin
from outrider.core.propose.lookup import READ_TOKENS_MAX, PromptLookup
from outrider.core.propose.ngram import HISTORY_TOKENS_MAX, NgramTable, extend
from outrider.core.protocol.line import Line
from outrider.core.protocol.tree import LIVE, Growth, Node, SpeculationTree, path_tokens
from outrider.core.verify import overlay
from outrider.core.verify.overlay import Overlay

LOOP = [1, 2, 3, 4, 5]
PROBABILITY_MIN, ASKING_PROBABILITY_MIN = 0.05, 0.2
"""What is less likely does not become a node, or is not asked about. Here: what suits models is found elsewhere."""


@pytest.fixture(autouse=True, scope="module")
def _probability_min() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlay, "_LOG_ACCEPTANCE_MIN", math.log(PROBABILITY_MIN))
        patch.setattr(overlay, "_ASKING_LOG_ACCEPTANCE_MIN", math.log(ASKING_PROBABILITY_MIN))
        yield


class Bench:
    """A line, its table and its tree."""

    def __init__(self, line: Sequence[int]) -> None:
        self.calibration = Calibration(VERIFY_PROBABILITIES)
        self.tree = SpeculationTree(len(line) - 1, line[-1], believed(self.calibration))
        self.line = Line(line)
        self.use(NgramTable())

    def use(self, ngrams: NgramTable) -> None:
        """Looks up in `ngrams`, which is empty yet."""
        self.ngrams = ngrams
        self.lookup = PromptLookup(ngrams, self.line)
        self.begin()
        assert self.lookup.prepare()

    def begin(self) -> None:
        """A round begins: nothing has been guessed in it."""
        self.overlay = begun(self.tree, self.lookup, self.calibration)

    def commit(self, token_ids: Sequence[int]) -> Growth:
        """As a round does."""
        self.line.commit(len(self.line), token_ids)
        growth = self.tree.commit(token_ids)
        self.lookup.commit(token_ids)
        self.begin()
        return growth

    def draft(self, parent: Node, token_id: int, probability: float) -> Node:
        """A drafter's guess, believed to be that likely or nearly."""
        node = self.tree.attach(parent, token_id, math.log(probability))
        assert node is not None
        return node

    def probability(self, node: Node) -> float:
        """That the target's path runs to `node`."""
        return math.exp(node.path_log_prob - self.tree.root.path_log_prob)


def believed(calibration: Calibration) -> Callable[[float], float]:
    """How likely a drafter's guess is right, from what it claims."""
    return lambda log_prob: calibration.log_acceptance(claim_bin(log_prob))


def begun(tree: SpeculationTree, lookup: PromptLookup, calibration: Calibration) -> Overlay:
    """A round's overlay, which has been prepared twice, as when a round is called off."""
    found = Overlay(tree, lookup, calibration.log_acceptance)
    found.prepare()
    found.prepare()
    return found


def packed(token_ids: Sequence[int]) -> int:
    context = 0
    for token_id in token_ids:
        context = extend(context, token_id)
    return context


def followed(guesses: Overlay, node: Node, depth: int) -> list[int]:
    """The likeliest path below `node`, each node of it asked for what comes next."""
    token_ids: list[int] = []
    while len(token_ids) < depth and (below := guesses.below(node)):
        node = max(below.values(), key=lambda child: child.path_log_prob)
        token_ids.append(node.token_id)
    return token_ids


def test_below_a_bare_root_stands_what_the_table_says_with_the_chances_of_its_cells() -> None:
    # After 7 came 1 three times, 2 once and 3 once.
    bench = Bench([7, 1, 5, 7, 1, 6, 7, 2, 8, 7, 1, 9, 7, 3, 4, 7])
    root, probabilities = bench.tree.root, bench.ngrams.probabilities(bench.ngrams.context)
    assert set(probabilities) == {1, 2, 3}
    below = bench.overlay.below(root)
    assert bench.overlay.below(root) is below
    assert list(below) == list(probabilities)
    assert bench.overlay.guesses(root) == [
        (token_id, lookup_bin(probability)) for token_id, probability in probabilities.items()
    ]
    for token_id, probability in probabilities.items():
        node = below[token_id]
        assert bench.overlay.made(root, token_id) is node
        assert bench.probability(node) == pytest.approx(VERIFY_PROBABILITIES[lookup_bin(probability)])
        assert (node.parent, node.position, node.state) == (root, root.position + 1, LIVE)
        assert node.token_id == token_id
    assert (root.children, bench.tree.num_live) == ({}, 0)


def test_a_guess_is_worth_what_guesses_like_it_have_proved_to_be_worth() -> None:
    bench = Bench(LOOP * 4)
    [(_, probability)] = bench.ngrams.probabilities(bench.ngrams.context).items()
    for index in range(100):
        bench.calibration.observe(lookup_bin(probability), index % 4 == 0)
    [node] = bench.overlay.below(bench.tree.root).values()
    assert bench.probability(node) == pytest.approx(0.25, abs=0.05)


def test_where_nothing_has_been_seen_before_there_is_nothing() -> None:
    bench = Bench([1, 2, 3])
    assert not bench.overlay.below(bench.tree.root)
    assert not bench.overlay.guesses(bench.tree.root)
    assert bench.tree.num_live == 0


def test_chains_go_on_below_what_was_looked_up() -> None:
    bench = Bench(LOOP * 4)
    assert followed(bench.overlay, bench.tree.root, 7) == [1, 2, 3, 4, 5, 1, 2]


def test_what_comes_next_follows_from_the_whole_path_and_the_line_above_it() -> None:
    # After 2 alone mostly 4, after 1 2 always 3; the line ends with 1.
    line = [1, 2, 3, 9, 2, 4, 9, 2, 4, 8, 2, 4, 1, 2, 3, 9, 1]
    bench = Bench(line)
    assert followed(bench.overlay, bench.tree.root, 2) == [2, 3]
    # Below a draft that the line has not: what followed its last token, after whatever.
    drafted = bench.draft(bench.draft(bench.tree.root, 6, 0.9), 2, 0.9)
    assert followed(bench.overlay, drafted, 1) == [4]


def test_guesses_on_an_unlikely_path_are_not_made_but_are_learned_about() -> None:
    # After 7 came four different tokens.
    line = [7, 1, 7, 2, 7, 3, 7, 4, 9]
    bench = Bench(line)
    drafted = bench.draft(bench.tree.root, 7, 0.25)
    probabilities = bench.ngrams.probabilities(packed([*line, 7]))
    confidence_bins = {token_id: lookup_bin(probability) for token_id, probability in probabilities.items()}
    assert (
        bench.probability(drafted)
        > ASKING_PROBABILITY_MIN
        > PROBABILITY_MIN
        > bench.probability(drafted) * VERIFY_PROBABILITIES[confidence_bins[1]]
    )
    assert not bench.overlay.below(drafted)
    assert not drafted.children
    assert bench.tree.num_live == 1
    assert bench.overlay.guesses(drafted) == list(confidence_bins.items())

    before = bench.calibration.log_acceptance(confidence_bins[1])
    decided([(9, bench.overlay.guesses(drafted))], [bench.calibration])
    assert bench.calibration.log_acceptance(confidence_bins[1]) < before


def test_siblings_become_nodes_or_not_each_by_its_own_chance() -> None:
    # After 7 came 1 three times and 2 once.
    line = [7, 1, 5, 7, 1, 6, 7, 2, 8, 7, 1, 3]
    bench = Bench(line)
    drafted = bench.draft(bench.tree.root, 7, 0.25)
    probabilities = bench.ngrams.probabilities(packed([*line, 7]))
    below = bench.overlay.below(drafted)
    assert list(below) == [1]
    assert [token_id for token_id, _ in bench.overlay.guesses(drafted)] == list(probabilities)
    assert bench.probability(below[1]) >= PROBABILITY_MIN
    assert bench.probability(drafted) * VERIFY_PROBABILITIES[lookup_bin(probabilities[2])] < PROBABILITY_MIN


class CountingTable(NgramTable):
    """Counts how often it is asked."""

    num_asked = 0

    def probabilities(self, context: int) -> dict[int, float]:
        self.num_asked += 1
        return super().probabilities(context)


def test_a_node_that_is_hardly_reached_is_not_even_asked_about() -> None:
    bench = Bench(LOOP * 4)
    table = CountingTable()
    bench.use(table)
    likely = bench.draft(bench.tree.root, 3, 0.35)
    hopeless = bench.draft(likely, 4, 0.45)
    assert bench.probability(likely) > ASKING_PROBABILITY_MIN > bench.probability(hopeless) > PROBABILITY_MIN
    assert not bench.overlay.below(hopeless)
    assert table.num_asked == 0
    assert not bench.overlay.guesses(hopeless)
    likely = bench.draft(bench.tree.root, 4, 0.35)
    for _ in range(2):
        bench.overlay.below(likely)
    assert table.num_asked == 1
    assert bench.overlay.guesses(likely)


def test_how_likely_a_node_is_counts_from_the_present_root() -> None:
    bench = Bench(LOOP * 4)
    unlikely = bench.draft(bench.draft(bench.tree.root, 3, 0.15), 4, 0.15)
    bench.commit([3, 4])
    assert bench.tree.root is unlikely
    [node] = bench.overlay.below(unlikely).values()
    assert node.token_id == 5
    assert bench.probability(node) > 0.5


def test_it_knows_which_guesses_are_its_own() -> None:
    bench = Bench(LOOP * 4)
    root = bench.tree.root
    drafted = bench.draft(root, 1, 0.9)
    [found] = bench.overlay.below(drafted).values()
    assert [bool(bench.overlay.guesses(node)) for node in (root, drafted, found)] == [False, True, False]
    assert bench.overlay.num_looked_up([drafted, found]) == 1
    assert bench.overlay.num_looked_up([drafted]) == bench.overlay.num_looked_up([]) == 0
    bench.begin()
    assert not bench.overlay.guesses(drafted)


def test_tokens_that_were_decided_are_learned() -> None:
    bench = Bench([1, 2, 3])
    assert not bench.overlay.below(bench.tree.root)
    bench.commit([1, 2])
    assert followed(bench.overlay, bench.tree.root, 2) == [3, 1]


def test_a_table_that_is_often_wrong_is_trusted_less() -> None:
    bench = Bench(LOOP * 4)
    line = LOOP * 4
    [(_, before)] = bench.ngrams.probabilities(packed(line)).items()
    for token_id in (9, 3, 9, 5, 9, 2, 9, 4):
        bench.commit([token_id])
    assert bench.ngrams.probabilities(packed(line))[1] < 0.8 * before


def test_what_was_looked_up_and_chosen_becomes_the_root_with_nothing_below() -> None:
    bench = Bench(LOOP * 4)
    assert followed(bench.overlay, bench.tree.root, 4) == [1, 2, 3, 4]
    bench.commit([1, 2])
    root = bench.tree.root
    assert (root.token_id, root.children, bench.tree.num_live) == (2, {}, 0)
    assert not bench.overlay.guesses(root)
    assert followed(bench.overlay, root, 3) == [3, 4, 5]


def test_a_long_line_is_read_over_several_rounds_and_what_was_decided_meanwhile_too() -> None:
    line = LOOP * ((2 * READ_TOKENS_MAX + 100) // len(LOOP))
    tree = SpeculationTree(len(line) - 1, line[-1])
    whole, calibration = Line(line), Calibration(VERIFY_PROBABILITIES)
    lookup = PromptLookup(NgramTable(), whole)
    next_ids = LOOP * 2
    for token_id in next_ids[:2]:
        assert not begun(tree, lookup, calibration).below(tree.root)
        whole.commit(len(whole), [token_id])
        tree.commit([token_id])
        lookup.commit([token_id])
    assert followed(begun(tree, lookup, calibration), tree.root, 4) == next_ids[2:6]


def test_of_a_line_beyond_its_history_a_table_reads_the_end() -> None:
    beginning = list(range(1000, 1000 + READ_TOKENS_MAX))
    line = Line([*beginning, *LOOP * (HISTORY_TOKENS_MAX // len(LOOP))])
    tree = SpeculationTree(len(line) - 1, line.token_ids[-1])
    table = NgramTable()
    lookup = PromptLookup(table, line)
    num_rounds = next(number for number in range(1, 100) if lookup.prepare())
    assert num_rounds == -(-HISTORY_TOKENS_MAX // READ_TOKENS_MAX)
    assert table.probabilities(packed([beginning[0]])) == {}
    assert followed(begun(tree, lookup, Calibration(VERIFY_PROBABILITIES)), tree.root, 2) == LOOP[:2]


TOKEN_IDS = st.integers(0, 3)


class Rounds(RuleBasedStateMachine):
    """A tree below which things are looked up between what happens to it, beside one that nobody looks at."""

    nodes = Bundle("nodes")

    @initialize(target=nodes, line=st.lists(TOKEN_IDS, min_size=1, max_size=30))
    def begin(self, line: list[int]) -> tuple[Node, Node]:
        self.line = line
        self.bench = Bench(line)
        self.plain = SpeculationTree(len(line) - 1, line[-1], believed(self.bench.calibration))
        self.guessed: list[Node] = []
        return self.bench.tree.root, self.plain.root

    @rule(target=nodes, pair=nodes, token_id=TOKEN_IDS, tenths=st.integers(1, 10))
    def draft(self, pair: tuple[Node, Node], token_id: int, tenths: int) -> object:
        """Drafts come: what was guessed before them is void, as in a session."""
        self.begin_again()
        found, expected = (
            tree.attach(node, token_id, math.log(tenths / 10))
            for tree, node in zip((self.bench.tree, self.plain), pair, strict=True)
        )
        assert (found is None) == (expected is None)
        return multiple() if found is None or expected is None else (found, expected)

    @rule(places=st.lists(st.integers(0, 40), min_size=1, max_size=8))
    def look_up(self, places: list[int]) -> None:
        """Below any nodes that have no children, drafted or looked up."""
        for place in places:
            tree = self.bench.tree
            leaves = [node for node in (tree.root, *tree.live_nodes(), *self.guessed) if not node.children]
            node = leaves[place % len(leaves)]
            expected = self.bench.ngrams.probabilities(packed([*self.line, *path_tokens(tree.root, node)]))
            below = self.bench.overlay.below(node)
            self.guessed += [child for child in below.values() if child not in self.guessed]
            if node.path_log_prob - tree.root.path_log_prob < math.log(ASKING_PROBABILITY_MIN):
                expected = {}
            assert [token_id for token_id, _ in self.bench.overlay.guesses(node)] == list(expected)
            assert set(below) <= set(expected)
            assert all(self.bench.probability(child) >= PROBABILITY_MIN - 1e-9 for child in below.values())
            assert self.bench.overlay.num_looked_up([*tree.live_nodes(), *below.values()]) == len(below)

    @rule()
    def begin_again(self) -> None:
        self.bench.begin()
        self.guessed.clear()
        self.check_same()

    @rule(target=nodes, steps=st.lists(st.integers(0, 9), min_size=1, max_size=4))
    def commit(self, steps: list[int]) -> tuple[Node, Node]:
        """Along a path of drafts and then guesses as long as the lot wants that, and off it."""
        tree, overlay = self.bench.tree, self.bench.overlay
        node: Node | None = tree.root
        token_ids: list[int] = []
        for step in steps:
            known: list[int] = []
            if node is not None:
                known = list(node.children) or [
                    guess for guess, _ in overlay.guesses(node) if overlay.made(node, guess)
                ]
            token_ids.append(known[step % len(known)] if known and step > 1 else step % 4)
            if node is not None:
                node = node.children.get(token_ids[-1]) or overlay.made(node, token_ids[-1])
        self.bench.commit(token_ids)
        self.plain.commit(token_ids)
        self.line = [*self.line, *token_ids]
        self.guessed.clear()
        self.check_same()
        return tree.root, self.plain.root

    @invariant()
    def counted(self) -> None:
        assert self.bench.tree.num_live == len(list(self.bench.tree.live_nodes()))
        assert self.bench.ngrams.context == packed(self.line)

    def check_same(self) -> None:
        """Node by node: the tree holds the drafts and nothing else."""
        assert self.bench.tree.num_live == self.plain.num_live
        pairs = [(self.bench.tree.root, self.plain.root)]
        for found, expected in pairs:
            assert (found.position, found.token_id, found.state) == (
                expected.position,
                expected.token_id,
                expected.state,
            )
            assert list(found.children) == list(expected.children)
            assert not self.bench.overlay.guesses(found)
            assert found.path_log_prob - self.bench.tree.root.path_log_prob == pytest.approx(
                expected.path_log_prob - self.plain.root.path_log_prob
            )
            pairs.extend(zip(found.children.values(), expected.children.values(), strict=True))


TestRounds = Rounds.TestCase
TestRounds.settings = settings(max_examples=60, stateful_step_count=30)
