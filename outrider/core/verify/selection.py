"""Which nodes are worth a place in the next forward pass."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from outrider.core.estimate.step_curve import StepCurve
from outrider.core.protocol.tree import Node, SpeculationTree
from outrider.core.verify.overlay import Overlay

_GAIN_MIN = 0.02
"""Share by which guesses must promise to raise the rate, or none is scored. A promise of less is mostly chance: among
many estimates the highest are too high. On the virtual clock, 64 sessions whose device is saturated lost 1 to 3 % by
believing it, and nothing with this."""


class Candidates(NamedTuple):
    """A tree whose nodes ask for a place."""

    tree: SpeculationTree
    limit: int
    """Most nodes of it in one step."""
    max_position: int
    """Nodes beyond this position are left out."""
    overlay: Overlay | None = None
    """The verifier's own guesses."""

    def below(self, node: Node) -> Collection[Node]:
        """The children of `node` that may ask for a place."""
        if node.position >= self.max_position:
            return ()
        return node.children.values() if self.overlay is None else self.overlay.children(node)


class Beside(NamedTuple):
    """What else is in the step."""

    num_tokens: int = 0
    expected: float = 0.0
    """How many tokens that commits, or is worth."""


NOTHING_BESIDE = Beside()


def prompts_beside(curve: StepCurve, num_rows: int, num_tokens: int) -> Beside:
    """`num_tokens` of prompts in a step that decides `num_rows` sessions.

    They must be read, if not in this step then in another one: their time is worth what it brings without guesses. Held
    worth nothing they would make the step long and guesses seem cheap, the more of them the more prompts come.
    """
    seconds = curve.seconds(num_rows)
    if seconds <= 0.0:
        return Beside(num_tokens)
    return Beside(num_tokens, num_rows * (curve.seconds(num_rows + num_tokens) - seconds) / seconds)


class Selection(NamedTuple):
    """What one step should score."""

    nodes: list[list[Node]]
    """For each tree its nodes, parents before children; maybe none."""
    seconds: float
    """Expected duration of the step; 0 while unknown."""
    probability_min: float
    """The chance from which one more node would have been worth its time: no guess below it is worth scoring."""


Select = Callable[[Sequence[Candidates], StepCurve, Beside], Selection]
"""Which nodes of some trees to score, by the time of steps and by what else is in the step."""


def most_probable(trees: Sequence[Candidates], curve: StepCurve, beside: Beside = NOTHING_BESIDE) -> Selection:
    """The nodes of all `trees` for which a step promises the most tokens per second.

    Nodes are taken in order of the chance that the target chooses their path; a parent's is never less than its
    child's, so any first part of that order is a subtree of each tree, parents before children. With the root of every
    tree and what is `beside` in the step, n nodes of chance p commit (beside.expected + num_trees + sum p) tokens in
    t(beside.num_tokens + num_trees + n) seconds in expectation; the n that maximizes the quotient is found by trying
    all that may, since t need not be convex. Where scoring a guess costs more than it is worth, n is 0: plain decoding.
    """
    order: list[tuple[int, Node]] = []
    heap: list[tuple[float, int, int, Node]] = []
    room = [each.limit for each in trees]
    num_pushed = 0
    for index, each in enumerate(trees):
        if each.limit > 0:
            if each.overlay is not None:
                each.overlay.prepare()
            for child in each.below(each.tree.root):
                num_pushed += 1
                heap.append((each.tree.root.path_log_prob - child.path_log_prob, num_pushed, index, child))
    heapq.heapify(heap)
    num_tokens = beside.num_tokens + len(trees)
    plain_expected, plain_seconds = beside.expected + len(trees), curve.seconds(num_tokens)
    best_num, best_expected, best_seconds = 0, plain_expected, plain_seconds
    expected = plain_expected
    num_left = sum(room)
    num_worse = 0
    while heap:
        cost, _, index, node = heapq.heappop(heap)
        if not room[index]:
            continue
        room[index] -= 1
        num_left -= 1
        probability = math.exp(-cost)
        expected += probability
        order.append((index, node))
        seconds = curve.seconds(num_tokens + len(order))
        if expected * best_seconds >= best_expected * seconds:
            best_num, best_expected, best_seconds = len(order), expected, seconds
            num_worse = 0
        else:
            num_worse += 1
            is_power_of_two = not num_worse & (num_worse - 1)  # asked seldom: what went wrong once mostly goes on to
            if is_power_of_two and not _may_pay(
                curve, num_tokens + len(order), num_left, expected, probability, best_expected / best_seconds
            ):
                break
        if not room[index]:
            continue
        each = trees[index]
        root_log_prob = each.tree.root.path_log_prob
        for child in each.below(node):
            num_pushed += 1
            heapq.heappush(heap, (root_log_prob - child.path_log_prob, num_pushed, index, child))
    if best_expected * plain_seconds < (1.0 + _GAIN_MIN) * plain_expected * best_seconds:
        best_num, best_expected, best_seconds = 0, plain_expected, plain_seconds
    chosen: list[list[Node]] = [[] for _ in trees]
    for index, node in order[:best_num]:
        chosen[index].append(node)
    return Selection(chosen, best_seconds, _probability_min(curve, num_tokens + best_num, best_expected, best_seconds))


def _may_pay(
    curve: StepCurve, num_tokens: int, num_left: int, expected: float, probability: float, rate: float
) -> bool:
    """Whether up to `num_left` more nodes could still beat `rate` tokens per second, if all had that `probability`.

    Between bends time is linear in their number, as is what they promise: if any number of them could, one at a bend
    could, or all.
    """
    last = num_tokens + num_left
    return any(
        expected + probability * (size - num_tokens) > rate * curve.seconds(size)
        for size in (*curve.bends(num_tokens, last), last)
    )


def _probability_min(curve: StepCurve, num_tokens: int, expected: float, seconds: float) -> float:
    """p above which p / (marginal time of a token) exceeds `expected` / t(num_tokens), which is `seconds`.

    The marginal time is the slope up to twice the size: a step's time rises in stairs, and the next stair counts.
    """
    if seconds <= 0.0:
        return 0.0
    return min(expected * (curve.seconds(2 * num_tokens) / seconds - 1.0) / num_tokens, 1.0)
