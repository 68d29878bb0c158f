"""What a draft session makes of proposals: a draft model's by their margins, n-grams' by what they promise."""

from __future__ import annotations

import math
import random

import pytest

from outrider.core.draft.estimates import DraftEstimates
from outrider.core.draft.expansions import choose_expansions
from outrider.core.draft.session import DraftSession
from outrider.core.estimate.confidence import DRAFT_PROBABILITIES, NGRAM_PROBABILITIES, margin_bin, ngram_bin
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow
from outrider.core.protocol.naming import Inbound
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import SpeculationTree

LOOP = [1, 2, 3, 4, 5] * 6
VOCAB_SIZE = 100


def draft_session(
    line: list[int] = LOOP, *, max_run_ahead: int = 16, tree_width: int = 2, max_length: int = 1000
) -> DraftSession:
    given = opening(line, max_run_ahead=max_run_ahead, tree_width=tree_width, max_length=max_length)
    return DraftSession(given)


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


def flat_curve() -> StepCurve:
    curve = StepCurve()
    curve.observe(1, 1.0)
    return curve


def test_without_a_draft_model_the_ngrams_are_believed_as_far_as_they_alone_go() -> None:
    session = DraftSession(opening(LOOP), DraftEstimates(NGRAM_PROBABILITIES, ngram_bin))
    root = session.take()
    session.expand(root, [7, 8], [0.4, 0.3])
    for token_id, promise in ((7, 0.4), (8, 0.3)):
        assert root.children[token_id].log_prob == math.log(NGRAM_PROBABILITIES[ngram_bin(0, promise)])


def test_a_draft_model_is_believed_as_far_as_its_margins_go() -> None:
    session = draft_session([1, 2, 3])
    session.expand(session.take(), [9, 8], [1.5, 1.5])
    assert [(child.token_id, child.log_prob) for child in session.tree.root.children.values()] == [
        (9, math.log(DRAFT_PROBABILITIES[margin_bin(0, 1.5)])),
        (8, math.log(DRAFT_PROBABILITIES[margin_bin(1, 1.5)])),
    ]


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


@pytest.mark.parametrize("seed", range(40))
def test_credit_width_and_names_hold_whatever_is_proposed(seed: int) -> None:
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
