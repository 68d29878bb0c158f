"""A draft session with n-grams: what is foreseen before the draft model speaks, and how both are mixed after."""

from __future__ import annotations

import math
import random

import pytest

from outrider.core.calibration import Calibration
from outrider.core.drafting import DraftSession, choose_expansions
from outrider.core.messages import Commitment, DraftOpen, Window
from outrider.core.naming import Inbound
from outrider.core.ngram import NgramTable
from outrider.core.sampling import SamplingParams
from outrider.core.step_curve import StepCurve
from outrider.core.tree import Node, SpeculationTree

LOOP = [1, 2, 3, 4, 5] * 6
VOCAB_SIZE = 100


def draft_session(
    line: list[int] = LOOP, *, max_run_ahead: int = 16, tree_width: int = 2, max_length: int = 1000
) -> DraftSession:
    opening = DraftOpen(
        session_id="s",
        token_ids=line,
        num_prompt_tokens=len(line),
        sampling=SamplingParams(),
        max_run_ahead=max_run_ahead,
        tree_width=tree_width,
        max_length=max_length,
        vocab_size=VOCAB_SIZE,
    )
    return DraftSession(opening, ngrams=NgramTable(line))


def steep_curve() -> StepCurve:
    """Twice the tokens take twice the time."""
    curve = StepCurve()
    for num_tokens in (1, 2, 4, 8, 16):
        curve.observe(num_tokens, float(num_tokens))
    return curve


def flat_curve() -> StepCurve:
    curve = StepCurve()
    curve.observe(1, 1.0)
    return curve


def chain_below(node: Node) -> list[int]:
    token_ids: list[int] = []
    while len(node.children) == 1:
        (node,) = node.children.values()
        token_ids.append(node.token_id)
    return token_ids


def test_a_repetition_is_foreseen_before_the_draft_model_has_spoken() -> None:
    session = draft_session()
    (nodes,) = choose_expansions([session], flat_curve())
    assert nodes[0] is session.tree.root
    assert [node.token_id for node in nodes[1:]] == LOOP[: len(nodes) - 1]
    assert len(nodes) >= 4
    window = session.take_window(0.0)
    assert window is not None
    assert list(window.token_ids) == LOOP[: len(nodes)]


def test_one_step_of_the_draft_model_confirms_a_whole_chain() -> None:
    session = draft_session(tree_width=1)
    (nodes,) = choose_expansions([session], flat_curve())
    for node in nodes:
        session.expand(node, [LOOP[(node.position + 1) % 5]], [-0.1])
    assert chain_below(session.tree.root)[: len(nodes)] == LOOP[: len(nodes)]
    assert all(node.expanded for node in nodes)


def test_where_larger_steps_cost_more_than_they_bring_nothing_is_added_to_them() -> None:
    session = draft_session()
    (nodes,) = choose_expansions([session], steep_curve())
    assert nodes == [session.tree.root]


def test_what_was_foreseen_stays_and_the_models_proposals_stand_beside_it() -> None:
    session = draft_session()
    root = session.take()
    assert list(root.children) == [1]
    foreseen = root.children[1]
    session.expand(root, [9, 8], [-0.5, -2.0])
    assert list(root.children) == [1, 9]
    assert root.children[1] is foreseen
    window = session.take_window(0.0)
    assert window is not None
    assert list(window.token_ids) == [1, 9]


def test_a_proposal_that_was_foreseen_is_sent_once() -> None:
    session = draft_session()
    root = session.take()
    session.expand(root, [1, 9], [-0.1, -2.0])
    window = session.take_window(0.0)
    assert window is not None
    assert list(window.token_ids) == [1, 9]
    assert session.take_window(0.0) is None


def test_guesses_in_doubt_are_mixed_with_the_models_by_chance() -> None:
    # After 7 came 1 and 2, once each: nothing is foreseen. The model's guesses are worth what calibration says.
    line = [3, 7, 1, 4, 7, 2, 5, 7]
    session = draft_session(line, tree_width=4)
    root = session.take()
    assert not root.children
    guesses = {guess.token_id: guess.probability for guess in NgramTable(line).guesses(NgramTable(line).context, 4)}
    assert set(guesses) == {1, 2}
    assert max(guesses.values()) < 0.5
    calibration = Calibration()
    first, second = (math.exp(calibration.log_chance(rank, log_prob)) for rank, log_prob in ((0, -0.7), (1, -1.0)))
    session.expand(root, [50, 2], [-0.7, -1.0])
    chances = guesses | {50: first, 2: max(guesses[2], second)}
    assert list(root.children) == sorted(chances, key=lambda token_id: -chances[token_id])
    for token_id, child in root.children.items():
        assert child.log_prob == pytest.approx(math.log(chances[token_id]))


def test_without_a_guess_the_models_proposals_are_what_they_were() -> None:
    session = draft_session([1, 2, 3])
    session.expand(session.take(), [9, 8], [-0.5, -2.0])
    assert [(child.token_id, child.log_prob) for child in session.tree.root.children.values()] == [(9, -0.5), (8, -2.0)]


def test_what_is_committed_is_remembered() -> None:
    session = draft_session([1, 2, 3, 4])
    session.commit(Commitment(4, [1, 2, 3], True))
    root = session.take()
    assert list(root.children) == [4]


def test_nothing_is_foreseen_past_the_lines_end() -> None:
    session = draft_session(max_length=len(LOOP) + 2)
    while session.best() is not None:
        session.expand(session.take(), (), ())
    assert max(node.position for node in session.tree.live_nodes()) == len(LOOP) + 1


def test_a_node_given_back_is_foreseen_once() -> None:
    session = draft_session()
    root = session.take()
    session.postpone([root])
    assert session.take() is root
    assert list(root.children) == [1]
    window = session.take_window(0.0)
    assert window is not None
    assert list(window.token_ids) == [1]


@pytest.mark.parametrize("seed", range(40))
def test_credit_width_and_names_hold_whatever_is_foreseen(seed: int) -> None:
    """A receiver that enforces the credit follows every window, whichever way commits and expansions interleave."""
    rng = random.Random(seed)
    width, max_run_ahead = rng.choice([(1, 4), (2, 9), (3, 16), (4, 64)])
    line = [rng.randrange(3) for _ in range(40)]
    session = draft_session(line, max_run_ahead=max_run_ahead, tree_width=width)
    mirror = SpeculationTree(len(line) - 1, line[-1])
    inbound = Inbound(vocab_size=VOCAB_SIZE, max_live_nodes=max_run_ahead)
    curve = flat_curve()
    num_sent = 0

    def send() -> None:
        nonlocal num_sent
        window: Window | None = session.take_window(0.0)
        if window is not None:
            num_sent += len(window)
            grafted = inbound.graft(mirror, window)
            assert (grafted.num_known, grafted.num_stale) == (0, 0)

    for _ in range(60):
        (nodes,) = choose_expansions([session], curve)
        send()
        for node in nodes:
            if rng.random() < 0.2:
                session.postpone([node])
                continue
            token_ids = rng.sample(range(4), min(width, 4))
            session.expand(node, token_ids, sorted((-rng.random() * 3 for _ in token_ids), reverse=True))
        assert session.tree.num_live <= max_run_ahead
        assert all(len(node.children) <= width for node in session.tree.live_nodes())
        send()
        if rng.random() < 0.5:
            node, token_ids = session.tree.root, []
            while node.children and rng.random() < 0.7:
                node = rng.choice(list(node.children.values()))
                token_ids.append(node.token_id)
            token_ids.append(rng.randrange(4))
            session.commit(Commitment(len(session.line), token_ids, False))
            mirror.commit(token_ids)
            assert mirror.num_live == session.tree.num_live
    assert num_sent > 20
