"""Which nodes are worth a place, against the plain definition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.estimate.calibration import Calibration
from outrider.core.estimate.confidence import VERIFY_PROBABILITIES, claim_bin
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.propose.lookup import PromptLookup
from outrider.core.propose.ngram import NgramTable
from outrider.core.protocol.line import Line
from outrider.core.protocol.tree import Node, SpeculationTree
from outrider.core.verify.overlay import Overlay
from outrider.core.verify.selection import Beside, Candidates, most_probable, prompts_beside

FREE = StepCurve()
"""No step was observed: all sizes take the same time."""


@st.composite
def trees(draw: st.DrawFn) -> SpeculationTree:
    """Random trees of up to 20 nodes at positions from 5 on."""
    tree = SpeculationTree(4, 0)
    nodes = [tree.root]
    for _ in range(draw(st.integers(0, 20))):
        parent = nodes[draw(st.integers(0, len(nodes) - 1))]
        node = tree.attach(parent, draw(st.integers(0, 4)), -draw(st.integers(0, 8)) / 4)
        assert node is not None
        nodes.append(node)
    return tree


@st.composite
def curves(draw: st.DrawFn) -> StepCurve:
    """Any curve, also with stairs."""
    curve = StepCurve()
    seconds = 1.0
    for num_tokens in range(1, 17):
        seconds += draw(st.sampled_from((0.0, 0.0, 0.05, 0.4, 2.0)))
        curve.observe(num_tokens, seconds)
    return curve


class NosyOverlay(Overlay):
    """Remembers below which nodes it was asked, and that nothing stood there, and all that it guessed."""

    def __init__(self, line: Sequence[int], tree: SpeculationTree, calibration: Calibration) -> None:
        super().__init__(tree, PromptLookup(NgramTable(), Line(line)), calibration.log_acceptance)
        self.asked: list[Node] = []
        self.guessed: list[Node] = []

    def below(self, node: Node) -> Mapping[int, Node]:
        assert not node.children
        assert node not in self.asked
        self.asked.append(node)
        below = super().below(node)
        self.guessed += below.values()
        return below


@st.composite
def guessing_trees(draw: st.DrawFn) -> tuple[SpeculationTree, NosyOverlay]:
    """Random trees of up to 8 drafts at the end of a line of few different tokens."""
    line = draw(st.lists(st.integers(0, 3), min_size=1, max_size=25))
    return guessing(
        line, draw(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3), st.integers(1, 9)), max_size=8))
    )


def guessing(line: Sequence[int], drafts: Sequence[tuple[int, int, int]] = ()) -> tuple[SpeculationTree, NosyOverlay]:
    """A tree at the end of `line`, in which each of `drafts` names its parent, a token and a chance in tenths."""
    calibration = Calibration(VERIFY_PROBABILITIES)
    log_acceptance = calibration.log_acceptance
    tree = SpeculationTree(len(line) - 1, line[-1], lambda log_prob: log_acceptance(claim_bin(log_prob)))
    nodes = [tree.root]
    for place, token_id, tenths in drafts:
        node = tree.attach(nodes[place % len(nodes)], token_id, math.log(tenths / 10))
        assert node is not None
        nodes.append(node)
    return tree, NosyOverlay(line, tree, calibration)


def chain(*probabilities: float) -> SpeculationTree:
    """A chain whose nodes have these chances given their parents."""
    tree = SpeculationTree(4, 0)
    node: Node | None = tree.root
    for token_id, probability in enumerate(probabilities, 1):
        assert node is not None
        node = tree.attach(node, token_id, math.log(probability))
    return tree


def check_subtree(tree: SpeculationTree, chosen: list[Node]) -> None:
    placed = [tree.root]
    for node in chosen:
        assert node.parent in placed
        placed.append(node)


def check_best(rates: list[float], num_chosen: int) -> None:
    """Of the rates that 0, 1, 2, ... nodes promise the best is taken, or that of none where the best is hardly more."""
    assert rates[num_chosen] == pytest.approx(max(rates)) or (num_chosen == 0 and max(rates) <= 1.02 * rates[0] * 1.001)


@given(trees(), st.integers(0, 10), st.integers(3, 10))
def test_the_most_probable_nodes_come_with_their_parents(tree: SpeculationTree, limit: int, max_position: int) -> None:
    chosen = most_probable([Candidates(tree, limit, max_position)], FREE).nodes[0]
    eligible = sorted((node.path_log_prob for node in tree.live_nodes() if node.position <= max_position), reverse=True)
    assert [node.path_log_prob for node in chosen] == eligible[:limit]
    check_subtree(tree, chosen)


@given(st.lists(trees(), min_size=1, max_size=3), curves(), st.integers(0, 8))
def test_no_other_number_of_nodes_promises_more_tokens_per_second(
    forest: list[SpeculationTree], curve: StepCurve, limit: int
) -> None:
    selection = most_probable([Candidates(tree, limit, 100) for tree in forest], curve)
    for tree, chosen in zip(forest, selection.nodes, strict=True):
        check_subtree(tree, chosen)
        assert len(chosen) <= limit
    # Of each tree alone, since the limit holds for each, its most probable ones; of those together the first n.
    probabilities = sorted(
        (
            math.exp(log_prob)
            for tree in forest
            for log_prob in sorted((node.path_log_prob for node in tree.live_nodes()), reverse=True)[:limit]
        ),
        reverse=True,
    )
    rates = [
        (len(forest) + sum(probabilities[:num])) / curve.seconds(len(forest) + num)
        for num in range(len(probabilities) + 1)
    ]
    num_chosen = sum(len(chosen) for chosen in selection.nodes)
    check_best(rates, num_chosen)
    assert selection.seconds == curve.seconds(len(forest) + num_chosen)


@given(trees(), curves(), st.integers(0, 12), st.integers(0, 8))
def test_what_is_beside_counts(tree: SpeculationTree, curve: StepCurve, num_tokens: int, num_expected: int) -> None:
    selection = most_probable([Candidates(tree, 20, 100)], curve, Beside(num_tokens, float(num_expected)))
    probabilities = sorted((math.exp(node.path_log_prob) for node in tree.live_nodes()), reverse=True)
    rates = [
        (1 + num_expected + sum(probabilities[:num])) / curve.seconds(1 + num_tokens + num)
        for num in range(len(probabilities) + 1)
    ]
    [chosen] = selection.nodes
    check_best(rates, len(chosen))
    assert selection.seconds == curve.seconds(1 + num_tokens + len(chosen))


def test_beside_a_chunk_of_a_prompt_guesses_are_cheaper() -> None:
    """The step is long anyhow, and a token more adds little to it."""
    tree = chain(*[0.6] * 8)
    candidates = [Candidates(tree, 15, 100)]
    alone = most_probable(candidates, linear(0.3)).nodes[0]
    beside = most_probable(candidates, linear(0.3), Beside(20)).nodes[0]
    assert len(alone) < len(beside)


@pytest.mark.parametrize("per_token", [0.1, 0.3, 0.6])
def test_prompts_that_must_be_read_anyhow_make_no_guess_worth_more(per_token: float) -> None:
    forest = [Candidates(chain(*[0.6] * 8), 15, 100) for _ in range(3)]
    curve = linear(per_token)
    num_alone = sum(map(len, most_probable(forest, curve).nodes))
    num_beside = sum(map(len, most_probable(forest, curve, prompts_beside(curve, len(forest), 40)).nodes))
    assert num_beside <= num_alone < sum(map(len, most_probable(forest, curve, Beside(40)).nodes))


def test_a_promise_of_next_to_nothing_is_not_believed() -> None:
    curve = StepCurve()
    for num_tokens in range(1, 65):
        curve.observe(num_tokens, float(1 + num_tokens))
    forest = [Candidates(chain(0.99), 8, 100), *[Candidates(chain(), 8, 100) for _ in range(31)]]
    assert not any(most_probable(forest, curve).nodes)
    assert any(most_probable(forest[:2], curve).nodes)


def test_a_saturated_device_scores_roots_alone() -> None:
    curve = StepCurve()
    for num_tokens in (1, 16, 64, 1024):
        curve.observe(num_tokens, float(num_tokens))
    forest = [Candidates(chain(*[0.95] * 15), 15, 100) for _ in range(64)]
    selection = most_probable(forest, curve)
    assert all(not nodes for nodes in selection.nodes)
    assert selection.probability_min == 1.0


class CountingCurve(StepCurve):
    """Counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.num_asked = 0

    def seconds(self, num_tokens: int) -> float:
        self.num_asked += 1
        return super().seconds(num_tokens)


@pytest.mark.parametrize("per_token", [0.02, 0.2, 1.0])
def test_the_choice_over_many_sessions_ends_soon_after_the_last_that_pays(per_token: float) -> None:
    """64 sessions with 15 guesses each: 960 nodes, of which few are looked at."""
    curve = CountingCurve()
    for num_tokens in (*range(1, 33), 64, 128, 256, 512, 1024):
        curve.observe(num_tokens, 1.0 + per_token * num_tokens)
    forest = [Candidates(chain(*[0.7] * 15), 15, 100) for _ in range(64)]
    curve.num_asked = 0
    num_chosen = sum(len(nodes) for nodes in most_probable(forest, curve).nodes)
    assert num_chosen < 200
    assert curve.num_asked < num_chosen + 60


def linear(per_token: float) -> StepCurve:
    curve = StepCurve()
    for num_tokens in range(1, 65):
        curve.observe(num_tokens, 1.0 + per_token * (num_tokens - 1))
    return curve


@pytest.mark.parametrize(("per_token", "num_chosen"), [(0.0, 6), (0.1, 2), (0.3, 1), (1.0, 0)])
def test_the_dearer_a_token_the_fewer_are_scored_and_in_the_end_none(per_token: float, num_chosen: int) -> None:
    tree = chain(0.5, 0.5, 0.5, 0.5, 0.5, 0.5)
    assert len(most_probable([Candidates(tree, 15, 100)], linear(per_token)).nodes[0]) == num_chosen


def test_a_step_on_a_stair_is_filled_up() -> None:
    curve = StepCurve()
    for num_tokens in range(1, 17):
        curve.observe(num_tokens, 1.0 if num_tokens <= 4 else 1.9)
    tree = chain(0.4, 0.4, 0.4, 0.4, 0.4)
    assert len(most_probable([Candidates(tree, 15, 100)], curve).nodes[0]) == 3


def test_what_looks_like_a_loss_at_first_may_pay_in_the_end() -> None:
    curve = StepCurve()
    for num_tokens in range(1, 17):
        curve.observe(num_tokens, 1.0 if num_tokens == 1 else 2.2)
    tree = chain(*[0.99] * 10)
    assert len(most_probable([Candidates(tree, 10, 100)], curve).nodes[0]) == 10


def test_a_hopeful_session_gets_the_places_that_a_hopeless_one_does_not_want() -> None:
    selection = most_probable([Candidates(chain(0.05), 8, 100), Candidates(chain(0.9, 0.9), 8, 100)], linear(0.15))
    assert [len(nodes) for nodes in selection.nodes] == [0, 2]


def test_the_smallest_chance_worth_scoring_rises_with_the_price_of_a_token() -> None:
    candidates = [Candidates(chain(0.5), 8, 100)]
    cheap, dear = (most_probable(candidates, linear(per_token)).probability_min for per_token in (0.01, 0.2))
    assert 0.0 < cheap < dear < 1.0
    assert most_probable(candidates, FREE).probability_min == 0.0
    assert most_probable(candidates, linear(5.0)).probability_min <= 1.0


def test_chances_count_from_the_present_root() -> None:
    tree = chain(0.1, 0.9)
    tree.commit([1])
    [nodes] = most_probable([Candidates(tree, 8, 100)], linear(0.5)).nodes
    assert [node.token_id for node in nodes] == [2]


LOOP = [1, 2, 3, 4, 5] * 4


@given(guessing_trees(), st.integers(0, 12), st.integers(0, 12))
def test_what_is_looked_up_is_chosen_like_drafts(
    guessing_tree: tuple[SpeculationTree, NosyOverlay], limit: int, room: int
) -> None:
    tree, overlay = guessing_tree
    drafted = list(tree.live_nodes())
    max_position = tree.root.position + room
    chosen = most_probable([Candidates(tree, limit, max_position, overlay)], FREE).nodes[0]
    check_subtree(tree, chosen)
    nodes = [*drafted, *overlay.guessed]
    eligible = sorted((node.path_log_prob for node in nodes if node.position <= max_position), reverse=True)
    assert [node.path_log_prob for node in chosen] == eligible[:limit]
    assert all(node.position <= max_position for node in overlay.guessed)
    assert list(tree.live_nodes()) == drafted
    # It was asked below each node that was taken, had no draft below it and left room for more; below no other.
    may_go_on = [tree.root, *chosen][:limit]
    leaves = [node for node in may_go_on if node.position < max_position and not node.children]
    assert overlay.asked == leaves


@given(trees(), curves(), st.integers(0, 8), st.integers(3, 10))
def test_a_proposer_that_knows_nothing_changes_nothing(
    tree: SpeculationTree, curve: StepCurve, limit: int, max_position: int
) -> None:
    alone = Candidates(tree, limit, max_position)
    num_live = tree.num_live
    expected = most_probable([alone], curve)
    overlay = Overlay(tree, PromptLookup(NgramTable(), Line([])), Calibration(VERIFY_PROBABILITIES).log_acceptance)
    assert most_probable([alone._replace(overlay=overlay)], curve) == expected
    assert tree.num_live == num_live


def test_without_an_overlay_a_bare_root_stays_bare() -> None:
    tree, overlay = guessing(LOOP)
    assert most_probable([Candidates(tree, 8, 100)], FREE).nodes == [[]]
    assert (tree.num_live, overlay.asked) == (0, [])


def test_below_the_last_draft_the_line_goes_on() -> None:
    tree, overlay = guessing(LOOP, [(0, 1, 9), (1, 2, 9)])
    [chosen] = most_probable([Candidates(tree, 5, 100, overlay)], FREE).nodes
    assert [node.token_id for node in chosen] == [1, 2, 3, 4, 5]


def test_each_tree_is_looked_up_in_its_own_line_and_none_beyond_its_bounds() -> None:
    forest = [guessing(LOOP), guessing([6, 7, 8] * 5), guessing(LOOP), guessing(LOOP), guessing(LOOP)]
    candidates = [Candidates(tree, 3, 100, overlay) for tree, overlay in forest]
    candidates[2] = candidates[2]._replace(overlay=None)
    candidates[3] = candidates[3]._replace(limit=0)
    candidates[4] = candidates[4]._replace(max_position=len(LOOP))
    chosen = most_probable(candidates, FREE).nodes
    assert [[node.token_id for node in nodes] for nodes in chosen] == [[1, 2, 3], [6, 7, 8], [], [], [1]]
    assert [len(overlay.asked) for _, overlay in forest] == [3, 3, 0, 0, 1]
    assert [len(overlay.guessed) for _, overlay in forest] == [3, 3, 0, 0, 1]
    assert [tree.num_live for tree, _ in forest] == [0] * 5


def test_what_is_looked_up_must_be_worth_its_time() -> None:
    tree, overlay = guessing(LOOP)
    assert most_probable([Candidates(tree, 8, 100, overlay)], linear(2.0)).nodes == [[]]
    overlay.asked.clear()
    [few] = most_probable([Candidates(tree, 8, 100, overlay)], linear(0.6)).nodes
    assert 0 < len(few) < 8
