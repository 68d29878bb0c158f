"""Drafting with a parallel draft model: which rows a pass is worth, and which paths through its proposals."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from outrider.core.draft.estimates import DraftEstimates
from outrider.core.draft.expansions import choose_expansions
from outrider.core.draft.lattice import Bounds, grow
from outrider.core.draft.mask_chains import MaskChains
from outrider.core.draft.session import DraftSession
from outrider.core.estimate.confidence import DRAFT_PROBABILITIES
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.propose.constraint import Constraint
from outrider.core.protocol.messages import Commitment, DraftOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import LIVE, Node, SpeculationTree, path_tokens
from outrider.core.protocol.validation import EXPANSIONS_MAX

NUM_POSITIONS = 5
FLAT, STEEP = (1.0, 0.0), (1.0, 0.1)


def session_of(
    *,
    width: int = 2,
    max_run_ahead: int = 64,
    max_length: int = 100,
    estimates: DraftEstimates | None = None,
    constraint: Constraint | None = None,
) -> DraftSession:
    opening = DraftOpen(
        session_id="s",
        token_ids=[90, 91],
        num_prompt_tokens=2,
        sampling=SamplingParams(),
        max_run_ahead=max_run_ahead,
        tree_width=width,
        max_length=max_length,
        vocab_size=100,
    )
    return DraftSession(opening, estimates or DraftEstimates(num_positions=NUM_POSITIONS), constraint=constraint)


def curve_of(fixed: float, per_token: float) -> StepCurve:
    curve = StepCurve()
    for num_tokens in range(1, 65):
        curve.observe(num_tokens, fixed + per_token * num_tokens)
    return curve


def chosen(session: DraftSession, curve: tuple[float, float] = FLAT) -> Counter[Node]:
    """The nodes of the next pass; each that has masks once more for each of them."""
    [nodes] = choose_expansions([session], curve_of(*curve))
    return Counter(nodes)


def expand(session: DraftSession, rows: Counter[Node], token_ids: Sequence[int], margin: float = 2.0) -> None:
    """What a pass proposes: the same for all places, surely."""
    guesses = list(token_ids), [margin] * len(token_ids)
    for node, num_rows in rows.items():
        session.expand(node, *guesses, [guesses] * (num_rows - 1))


def path(session: DraftSession, node: Node) -> list[int]:
    return path_tokens(session.tree.root, node)


def test_the_first_pass_guesses_all_places_at_once() -> None:
    session = session_of(width=1)
    rows = chosen(session)
    assert rows == {session.tree.root: NUM_POSITIONS}
    expand(session, rows, [7])
    assert [path(session, node) for node in session.tree.live_nodes()] == [[7] * n for n in range(1, NUM_POSITIONS + 1)]


def test_a_pass_that_takes_longer_for_each_token_guesses_fewer() -> None:
    sessions = {per_token: session_of() for per_token in (0.0, 0.5, 100.0)}
    lengths = [chosen(session, (1.0, per_token))[session.tree.root] for per_token, session in sessions.items()]
    assert lengths[0] == NUM_POSITIONS
    assert 1 < lengths[1] < NUM_POSITIONS
    assert lengths[2] == 1


def test_the_next_pass_has_several_outcomes_each_with_its_own_masks() -> None:
    session = session_of()
    expand(session, Counter({session.tree.root: _taken(session, 1)}), [7, 8])
    rows = chosen(session)
    first = session.tree.root.children
    assert rows == {first[7]: NUM_POSITIONS, first[8]: NUM_POSITIONS}
    expand(session, rows, [7, 8])
    assert sum(chosen(session).values()) == EXPANSIONS_MAX


def _taken(session: DraftSession, num_rows: int) -> int:
    """Takes the root and so many rows of it in all."""
    for _ in range(num_rows):
        assert session.best() is not None
        assert session.take() is session.tree.root
    return num_rows


def test_no_row_is_fed_before_the_path_that_leads_to_it() -> None:
    session = session_of(width=1)
    expand(session, chosen(session), [7])
    rows = chosen(session)
    taken = set(rows)
    for node in taken:
        parent = node.parent
        assert parent is session.tree.root or parent in taken
    deepest = max(taken, key=lambda node: node.position)
    assert path(session, deepest) == [7] * NUM_POSITIONS
    assert rows[deepest] > 1, "what was guessed is not lengthened"


def test_its_own_row_tells_more_of_a_node_than_masks_above_it() -> None:
    """And what that finds likelier or less likely is so from then on, with all below it."""
    session = session_of(width=6)
    _taken(session, 3)
    guesses = [7, 8], [2.0, 2.0]
    session.expand(session.tree.root, *guesses, [guesses] * 2)
    seven = session.tree.root.children[7]
    assert seven.mask_depth == 1
    below = {token_id: child.path_log_prob for token_id, child in seven.children.items()}
    assert set(below) == {7, 8}
    grandchild = seven.children[7].children[7].path_log_prob
    assert session.best() is not None
    assert session.take() is seven
    session.expand(seven, [7, 5], [7.0, 7.0])
    assert seven.mask_depth == 0
    assert seven.children[7].path_log_prob > below[7]
    assert seven.children[8].path_log_prob < below[8]
    assert set(seven.children) == {7, 8, 5}
    change = seven.children[7].path_log_prob - below[7]
    assert seven.children[7].children[7].path_log_prob == pytest.approx(grandchild + change)


def test_guesses_are_learned_by_how_many_masks_stood_before_them() -> None:
    estimates = DraftEstimates(num_positions=NUM_POSITIONS)
    cells = len(DRAFT_PROBABILITIES)
    calibration = estimates.calibration(greedy=True)
    session = session_of(width=1, estimates=estimates)
    [(_, first)] = estimates.binned([7], [2.0])
    bins = [first + mask_depth * cells for mask_depth in range(3)]
    before = [calibration.log_acceptance(each) for each in bins]
    assert before == sorted(before, reverse=True)
    expand(session, chosen(session), [7])
    session.commit(Commitment(2, [7, 9], rollback=False))
    after = [calibration.log_acceptance(each) for each in bins]
    assert after[0] > before[0]
    assert after[1] < before[1]
    assert after[2] == before[2], "nobody knows: what comes before it was wrong"


@pytest.mark.parametrize("helps", [True, False])
def test_masks_are_kept_while_they_help_and_given_up_where_they_do_not(helps: bool) -> None:
    estimates = DraftEstimates(num_positions=NUM_POSITIONS)
    session = session_of(width=1, estimates=estimates, max_length=10**6)
    num_rows = 0
    for _ in range(60):
        rows = chosen(session, STEEP)
        num_rows = rows[session.tree.root]
        expand(session, rows, [7])
        session.commit(Commitment(len(session.line), [7] * num_rows * helps or [7, 9], rollback=False))
        session.commit(Commitment(len(session.line), [9], rollback=True))
    assert num_rows == (NUM_POSITIONS if helps else 1)
    fresh = session_of(width=1, estimates=estimates)
    assert chosen(fresh, STEEP)[fresh.tree.root] == num_rows, "what one session learned, the next one knows"


class Even:
    """Only even tokens may stand after even ones, and 50 has to follow 40."""

    def allows(self, path: Sequence[int]) -> bool:
        return all((left + right) % 2 == 0 for left, right in itertools.pairwise(path))

    def forced(self, path: Sequence[int]) -> int | None:
        return 50 if path and path[-1] == 40 else None

    def commit(self, token_ids: Sequence[int]) -> None:
        pass


def test_what_a_constraint_forbids_beyond_masks_is_left_out_and_what_it_forces_is_added() -> None:
    session = session_of(width=6, constraint=Even())
    expand(session, Counter({session.tree.root: _taken(session, 3)}), [40, 41])
    paths = [path(session, node) for node in session.tree.live_nodes()]
    assert [41, 41, 41] in paths
    assert all(Even().allows(tokens) for tokens in paths)
    leaves = [tokens for tokens in paths if tokens[-1] == 50]
    assert leaves, "nothing was forced"


@pytest.mark.parametrize("seed", range(40))
def test_the_lattice_holds_the_likeliest_paths(seed: int) -> None:
    rng = random.Random(seed)
    rows = [
        [(token_id, 4 * depth + rank) for rank, token_id in enumerate(rng.sample(range(9), 3))] for depth in range(4)
    ]
    log_probs = [math.log(rng.uniform(0.05, 0.95)) for _ in range(16)]
    tree = SpeculationTree(0, 99)
    num_nodes, log_floor = rng.choice([3, 10, 1000]), rng.choice([-math.inf, math.log(0.05)])
    bounds = Bounds(num_nodes, log_floor, lambda node, token_id: True)
    new = grow(tree, tree.root, rows, log_probs.__getitem__, bounds)
    every = {
        tuple(token_id for token_id, _ in guesses): sum(log_probs[its_bin] for _, its_bin in guesses)
        for depth in range(1, 5)
        for guesses in itertools.product(*rows[:depth])
    }
    likeliest = sorted((each for each in every if every[each] >= log_floor), key=every.__getitem__, reverse=True)
    assert [tuple(path_tokens(tree.root, node)) for node in new] == likeliest[:num_nodes]
    assert [node.path_log_prob for node in new] == pytest.approx([every[each] for each in likeliest[:num_nodes]])


@pytest.mark.parametrize("seed", range(60))
def test_over_any_history_the_books_are_kept(seed: int) -> None:
    """Steps that fail in part, commits in their midst, credit that runs out, and the line's end."""
    rng = random.Random(seed)
    width, max_run_ahead = rng.choice([0, 1, 3]), rng.choice([4, 9, 40, 256])
    session = session_of(width=width, max_run_ahead=max_run_ahead, max_length=60)
    frontier = session._frontier
    assert isinstance(frontier, MaskChains)
    num_chains = 0
    while len(session.line) < 60:
        [nodes] = choose_expansions([session], curve_of(1.0, rng.choice([0.0, 0.1, 1.0])))
        rows = Counter(nodes)
        num_chains += sum(num_rows > 1 for num_rows in rows.values())
        assert all(node.position + num_rows < 60 for node, num_rows in rows.items()), "beyond the line's end"
        assert session.tree.num_live + len(nodes) - len(rows) <= max_run_ahead, "more masks than credit"
        if rng.random() < 0.2:
            session.postpone(nodes)
            rows = Counter()
        if rng.random() < 0.2:
            commit_something(session, rng)
        for node, num_rows in rows.items():
            guesses = [
                (rng.sample(range(5), min(session.width, 5)), [rng.expovariate(1.0)] * 5) for _ in range(num_rows)
            ]
            session.expand(node, *guesses[0], guesses[1:])
            assert session.tree.num_live <= max_run_ahead
        assert frontier.num_reserved == 0
        live = list(session.tree.live_nodes())
        assert len(live) == session.tree.num_live
        assert all(node.state is LIVE for node in live)
        for node in live:
            assert node.parent is not None
            assert node.path_log_prob == pytest.approx(node.parent.path_log_prob + node.log_prob)
            assert node.position < 60
        commit_something(session, rng)
    assert num_chains > 0 or max_run_ahead == 4


def commit_something(session: DraftSession, rng: random.Random) -> None:
    node, token_ids = session.tree.root, list[int]()
    while node.children and rng.random() < 0.6:
        node = rng.choice(list(node.children.values()))
        token_ids.append(node.token_id)
    session.commit(Commitment(len(session.line), [*token_ids, rng.randrange(5)], rollback=False))
