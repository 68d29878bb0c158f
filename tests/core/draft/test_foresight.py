"""A draft session with n-grams: what is foreseen before the draft model speaks, and how both are mixed after."""

from __future__ import annotations

import math
import random

import pytest

from outrider.core.draft.session import DraftEstimates, DraftSession, choose_expansions
from outrider.core.estimate.confidence import DRAFT_PROBABILITIES, Ngram, margin_bin, ngram_bin
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.propose.ngram import NgramTable
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow
from outrider.core.protocol.naming import Inbound
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import Node, SpeculationTree

LOOP = [1, 2, 3, 4, 5] * 6
VOCAB_SIZE = 100


def draft_session(
    line: list[int] = LOOP, *, max_run_ahead: int = 16, tree_width: int = 2, max_length: int = 1000
) -> DraftSession:
    given = opening(line, max_run_ahead=max_run_ahead, tree_width=tree_width, max_length=max_length)
    return DraftSession(given, ngrams=NgramTable(line))


def opening(line: list[int], *, max_run_ahead: int = 16, tree_width: int = 2, max_length: int = 1000) -> DraftOpen:
    return DraftOpen(
        session_id="s",
        token_ids=line,
        num_prompt_tokens=len(line),
        sampling=SamplingParams(),
        max_run_ahead=max_run_ahead,
        tree_width=tree_width,
        max_length=max_length,
        vocab_size=VOCAB_SIZE,
    )


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
        session.expand(node, [LOOP[(node.position + 1) % 5]], [2.0])
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
    session.expand(root, [9, 8], [1.5, 1.5])
    assert list(root.children) == [1, 9]
    assert root.children[1] is foreseen
    window = session.take_window(0.0)
    assert window is not None
    assert list(window.token_ids) == [1, 9]


def test_a_proposal_that_was_foreseen_is_sent_once() -> None:
    session = draft_session()
    root = session.take()
    session.expand(root, [1, 9], [1.9, 1.9])
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
    session.expand(root, [50, 2], [0.3, 0.3])
    confidence_bins = {
        50: margin_bin(0, 0.3),
        1: ngram_bin(Ngram.CONTRADICTED, guesses[1]),
        2: max(margin_bin(1, 0.3), ngram_bin(Ngram.NAMED, guesses[2]), key=DRAFT_PROBABILITIES.__getitem__),
    }
    assert list(root.children) == sorted(
        confidence_bins, key=lambda token_id: -DRAFT_PROBABILITIES[confidence_bins[token_id]]
    )
    for token_id, child in root.children.items():
        assert child.log_prob == math.log(DRAFT_PROBABILITIES[confidence_bins[token_id]])


class Promising(NgramTable):
    """Promises of the token after any context what it is told."""

    def __init__(self, line: list[int], promises: dict[int, float]) -> None:
        super().__init__(line)
        self._promises = promises

    def probabilities(self, context: int) -> dict[int, float]:
        return dict(self._promises)


def promised(promises: dict[int, float], *, estimates: DraftEstimates | None = None) -> DraftSession:
    return DraftSession(opening([1, 2, 3], tree_width=4), estimates, Promising([1, 2, 3], promises))


def test_a_guess_that_the_model_contradicts_comes_after_the_models_first_whatever_it_promises() -> None:
    session = promised({7: 0.6})
    root = session.take()
    assert not root.children
    session.expand(root, [50, 51], [0.05, 0.05])
    assert next(iter(root.children)) == 50
    assert (
        root.children[7].log_prob == math.log(DRAFT_PROBABILITIES[ngram_bin(Ngram.CONTRADICTED, 0.6)]) < math.log(0.1)
    )


def test_a_guess_that_the_model_confirms_is_worth_more_than_either_says_alone() -> None:
    session = promised({50: 0.6})
    root = session.take()
    assert not root.children
    session.expand(root, [50, 51], [0.3, 0.3])
    probability = root.children[50].log_prob
    alone = (
        math.log(DRAFT_PROBABILITIES[margin_bin(0, 0.3)]),
        math.log(DRAFT_PROBABILITIES[ngram_bin(Ngram.FORESEEN, 0.6)]),
    )
    assert probability > max(*alone, math.log(0.6))
    assert list(root.children) == [50, 51]


def test_a_guess_that_the_model_names_too_is_believed_as_the_surer_one_is() -> None:
    session = promised({51: 0.6, 52: 0.01})
    root = session.take()
    session.expand(root, [50, 51, 52], [0.05, 0.05, 4.0])
    assert root.children[51].log_prob == math.log(DRAFT_PROBABILITIES[margin_bin(1, 0.05)])
    assert root.children[52].log_prob == math.log(DRAFT_PROBABILITIES[ngram_bin(Ngram.NAMED, 0.01)])


def test_what_is_learned_decides_what_is_foreseen() -> None:
    estimates = DraftEstimates()
    confidence_bin = ngram_bin(Ngram.FORESEEN, 0.75)
    assert list(promised({7: 0.75}, estimates=estimates).take().children) == [7]
    for _ in range(20):
        estimates.calibration(greedy=True).observe(confidence_bin, False)
    assert not promised({7: 0.75}, estimates=estimates).take().children
    assert list(promised({7: 0.99}, estimates=estimates).take().children) == [7]


def test_without_a_draft_model_the_ngrams_are_believed_as_far_as_they_alone_go() -> None:
    session = promised({7: 0.4, 8: 0.3})
    root = session.take()
    session.expand(root, (), ())
    for token_id, promise in ((7, 0.4), (8, 0.3)):
        assert root.children[token_id].log_prob == math.log(DRAFT_PROBABILITIES[ngram_bin(Ngram.FORESEEN, promise)])


def test_without_a_guess_the_models_proposals_are_what_they_were() -> None:
    session = draft_session([1, 2, 3])
    session.expand(session.take(), [9, 8], [1.5, 1.5])
    assert [(child.token_id, child.log_prob) for child in session.tree.root.children.values()] == [
        (9, math.log(DRAFT_PROBABILITIES[margin_bin(0, 1.5)])),
        (8, math.log(DRAFT_PROBABILITIES[margin_bin(1, 1.5)])),
    ]


def test_what_is_not_foreseen_any_more_is_still_learned_about() -> None:
    estimates = DraftEstimates()
    confidence_bin = ngram_bin(Ngram.FORESEEN, 0.75)
    for _ in range(20):
        estimates.calibration(greedy=True).observe(confidence_bin, False)
    for _ in range(60):
        session = promised({7: 0.75}, estimates=estimates)
        root = session.take()
        session.expand(root, [50], [2.0])
        session.commit(Commitment(3, [7], True))
    assert list(promised({7: 0.75}, estimates=estimates).take().children) == [7]


def test_a_guess_not_worth_drafting_is_still_learned_about() -> None:
    estimates = DraftEstimates()
    shared, confidence_bin = estimates.calibration(greedy=True), margin_bin(3, 4.0)
    for _ in range(500):
        shared.observe(confidence_bin, False)
    probability = shared.log_acceptance(confidence_bin)
    session = DraftSession(opening([1, 2, 3], tree_width=0), estimates)
    root = session.take()
    session.expand(root, [50, 51, 52, 53], [0.5, 0.5, 0.9, 4.0])
    assert 53 not in root.children
    session.commit(Commitment(3, [53], True))
    assert shared.log_acceptance(confidence_bin) > probability


@pytest.mark.parametrize(("ngram_log_acceptance_min", "is_asked"), [(math.log(0.1), False), (-math.inf, True)])
def test_below_unlikely_nodes_the_ngrams_are_not_asked(ngram_log_acceptance_min: float, is_asked: bool) -> None:
    table = Promising([1, 2, 3], {7: 0.4})
    session = DraftSession(opening([1, 2, 3]), ngrams=table, ngram_log_acceptance_min=ngram_log_acceptance_min)
    session.expand(session.take(), [50], [2.0])
    likely, unlikely = session.take(), session.take()
    assert (likely.token_id, unlikely.token_id) == (50, 7)
    assert unlikely.path_log_prob < math.log(0.1) < likely.path_log_prob
    for node in (likely, unlikely):
        session.expand(node, [60], [0.1])
    assert list(likely.children) == [60, 7]
    assert (7 in unlikely.children) == is_asked


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
        window: DraftWindow | None = session.take_window(0.0)
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
            session.expand(node, token_ids, sorted(rng.random() * 3 for _ in token_ids))
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
