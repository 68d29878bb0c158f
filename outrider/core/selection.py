"""Which nodes are worth a place in the next forward pass."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from outrider.core.step_curve import StepCurve
from outrider.core.tree import Node, SpeculationTree


class Candidates(NamedTuple):
    """A tree whose nodes ask for a place."""

    tree: SpeculationTree
    limit: int
    """Most nodes of it in one step."""
    max_position: int
    """Nodes beyond this position are left out."""


class Selection(NamedTuple):
    """What one step should score."""

    nodes: list[list[Node]]
    """For each tree its nodes, parents before children; maybe none."""
    seconds: float
    """Expected duration of the step; 0 while unknown."""
    chance_min: float
    """The chance from which one more node would have been worth its time: no guess below it is worth scoring."""


def most_probable(trees: Sequence[Candidates], curve: StepCurve) -> Selection:
    """The nodes of all `trees` for which a step promises the most tokens per second.

    Nodes are taken in order of the chance that the target chooses their path; a parent's is never less than its
    child's, so any first part of that order is a subtree of each tree, parents before children. With the root of every
    tree in the step, n nodes of chance p commit (num_trees + sum p) tokens in t(num_trees + n) seconds in expectation;
    the n that maximizes the quotient is found by trying all, since t need not be convex. Where scoring a guess costs
    more than it is worth, n is 0: plain decoding.
    """
    order: list[tuple[int, Node]] = []
    heap: list[tuple[float, int, int, Node]] = []
    room = [each.limit for each in trees]
    num_pushed = 0
    for index, each in enumerate(trees):
        if each.limit > 0 and each.tree.root.position < each.max_position:
            for child in each.tree.root.children.values():
                num_pushed += 1
                heap.append((each.tree.root.path_log_prob - child.path_log_prob, num_pushed, index, child))
    heapq.heapify(heap)
    num_roots = len(trees)
    expected = float(num_roots)
    best_num, best_expected, best_seconds = 0, expected, curve.seconds(num_roots)
    num_left = sum(room)
    while heap:
        cost, _, index, node = heapq.heappop(heap)
        if not room[index]:
            continue
        room[index] -= 1
        num_left -= 1
        chance = math.exp(-cost)
        expected += chance
        order.append((index, node))
        seconds = curve.seconds(num_roots + len(order))
        if expected * best_seconds >= best_expected * seconds:
            best_num, best_expected, best_seconds = len(order), expected, seconds
        elif (expected + chance * num_left) * best_seconds < best_expected * seconds:
            break  # not even if all that is left were as likely as this one
        each = trees[index]
        if node.position < each.max_position and node.children:
            root_log_prob = each.tree.root.path_log_prob
            for child in node.children.values():
                num_pushed += 1
                heapq.heappush(heap, (root_log_prob - child.path_log_prob, num_pushed, index, child))
    chosen: list[list[Node]] = [[] for _ in trees]
    for index, node in order[:best_num]:
        chosen[index].append(node)
    return Selection(chosen, best_seconds, _chance_min(curve, num_roots + best_num, best_expected))


def _chance_min(curve: StepCurve, num_tokens: int, expected: float) -> float:
    """p above which p / (marginal time of a token) exceeds `expected` / t(num_tokens).

    The marginal time is the slope up to twice the size: a step's time rises in stairs, and the next stair counts.
    """
    seconds = curve.seconds(num_tokens)
    if seconds <= 0.0:
        return 0.0
    return min(expected * (curve.seconds(2 * num_tokens) / seconds - 1.0) / num_tokens, 1.0)


def paths_to(nodes: Iterable[Node], root: Node) -> list[Node]:
    """The union of the paths from below `root` to each of `nodes`, parents before children."""
    path_nodes: dict[int, Node] = {}
    for node in nodes:
        path: list[Node] = []
        while node is not root and id(node) not in path_nodes:
            path.append(node)
            assert node.parent is not None
            node = node.parent
        path_nodes.update((id(ancestor), ancestor) for ancestor in reversed(path))
    return list(path_nodes.values())
