"""What a drafter chooses and adds, kept up step by step, is what the plain definitions say, on random histories."""

from __future__ import annotations

import math
import random

import pytest

from outrider.core.draft.estimates import DraftEstimates
from outrider.core.draft.expansions import choose_expansions
from outrider.core.draft.session import NODES_BEFORE_FIRST_COMMIT_MAX, DraftSession
from outrider.core.estimate.confidence import margin_bin
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.protocol.messages import Commitment, DraftOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import Node
from outrider.core.protocol.validation import EXPANSIONS_MAX

VOCAB_SIZE = 12
NUM_PROMPT_TOKENS = 30
MAX_LENGTH = 400


def draft_session(rng: random.Random, estimates: DraftEstimates) -> DraftSession:
    line = [rng.randrange(4) for _ in range(NUM_PROMPT_TOKENS)]
    opening = DraftOpen(
        session_id="s",
        token_ids=line,
        num_prompt_tokens=len(line),
        sampling=SamplingParams(),
        max_run_ahead=rng.choice([8, 24, 96]),
        tree_width=rng.choice([0, 0, 2, 5]),
        max_length=MAX_LENGTH,
        vocab_size=VOCAB_SIZE,
    )
    return DraftSession(opening, estimates)


def random_curve(rng: random.Random) -> StepCurve:
    curve = StepCurve()
    seconds = 1.0
    for num_tokens in range(1, EXPANSIONS_MAX + 1):
        seconds += rng.choice([0.0, 0.01, 0.1, 1.0])
        curve.observe(num_tokens, seconds)
    return curve


def proposals(rng: random.Random, width: int) -> tuple[list[int], list[float]]:
    token_ids = rng.sample(range(VOCAB_SIZE), width)
    behind = sorted(-math.log(rng.random()) for _ in token_ids[1:])
    return token_ids, [behind[0] if behind else math.inf, *behind]


def commit_something(rng: random.Random, session: DraftSession) -> None:
    node, token_ids = session.tree.root, []
    while node.children and rng.random() < 0.6:
        node = rng.choice(list(node.children.values()))
        token_ids.append(node.token_id)
    token_ids.append(rng.randrange(4))
    verify_ms, probability_min = rng.choice([(0.0, 0.0), (3.0, 0.02), (3.0, 0.3)])
    session.commit(Commitment(len(session.line), token_ids, False, verify_ms, probability_min))


def plain_candidates(session: DraftSession) -> list[float]:
    """The chances of what the session may expand if nobody else is there, the likeliest first."""
    root, opening_width = session.tree.root, session.width
    nodes = [
        node for node in (root, *session.tree.live_nodes()) if node.proposals is None and node.position + 1 < MAX_LENGTH
    ]
    probabilities = sorted((node.path_log_prob - root.path_log_prob for node in nodes), reverse=True)
    worth = [probability for probability in probabilities if probability >= session._log_floor]
    num_nodes_max = session._max_run_ahead
    if len(session.line) == NUM_PROMPT_TOKENS:
        num_nodes_max = min(num_nodes_max, NODES_BEFORE_FIRST_COMMIT_MAX)
    credit = num_nodes_max - session.tree.num_live
    return worth[: max(credit // opening_width, 0)]


def plain_choice(sessions: list[DraftSession], curve: StepCurve) -> list[float]:
    """The chances of the nodes that are worth most per second, by trying every number of them."""
    probabilities = sorted(
        (probability for session in sessions for probability in plain_candidates(session)), reverse=True
    )
    probabilities = probabilities[: max(EXPANSIONS_MAX, len(sessions))]
    gain = [sum(map(math.exp, probabilities[:num])) / curve.seconds(num) for num in range(1, len(probabilities) + 1)]
    num = max(range(1, len(gain) + 1), key=lambda num: (gain[num - 1], num), default=0)
    return probabilities[:num]


def probability(session: DraftSession, node: Node) -> float:
    return node.path_log_prob - session.tree.root.path_log_prob


@pytest.mark.parametrize("seed", range(30))
def test_the_chosen_nodes_are_those_of_the_plain_definition(seed: int) -> None:
    rng = random.Random(seed)
    estimates = DraftEstimates()
    sessions = [draft_session(rng, estimates) for _ in range(rng.choice([1, 1, 3]))]
    num_chosen = 0
    for _ in range(60):
        curve = random_curve(rng)
        expected = plain_choice(sessions, curve)
        chosen = choose_expansions(sessions, curve)
        found = [probability(session, node) for session, nodes in zip(sessions, chosen, strict=True) for node in nodes]
        assert sorted(found, reverse=True) == pytest.approx(expected)
        num_chosen += len(found)
        for session, nodes in zip(sessions, chosen, strict=True):
            num_postponed = rng.choice([0, 0, 0, 1])
            session.postpone(nodes[:num_postponed])
            for node in nodes[num_postponed:]:
                session.expand(node, *proposals(rng, session.width))
            if rng.random() < 0.5:
                commit_something(rng, session)
    assert num_chosen > 20


@pytest.mark.parametrize("seed", range(20))
def test_what_is_added_is_what_the_plain_definition_adds(seed: int) -> None:
    rng = random.Random(seed)
    session = draft_session(rng, DraftEstimates())
    log_acceptance = session._calibrations[0].log_acceptance
    num_added = 0
    for _ in range(60):
        if session.best() is None or rng.random() < 0.3:
            commit_something(rng, session)
            continue
        node = session.take()
        token_ids, margins = proposals(rng, session.width)
        found = {
            token_id: log_acceptance(margin_bin(rank, margin))
            for rank, (token_id, margin) in enumerate(zip(token_ids, margins, strict=True))
        }
        expected = {child.token_id: child.path_log_prob for child in node.children.values()}
        floor = session._log_floor + session.tree.root.path_log_prob - node.path_log_prob
        others = [each for each in found.items() if each[1] >= floor and each[0] not in expected]
        num_free = session.width - len(expected)
        best_chances = sorted((each for _, each in others), reverse=True)[:num_free]
        session.expand(node, token_ids, margins)
        children = {child.token_id: child.path_log_prob for child in node.children.values()}
        assert expected.items() <= children.items()
        added = {token_id: path for token_id, path in children.items() if token_id not in expected}
        # Which of equals comes is not defined.
        assert added == {token_id: node.path_log_prob + found[token_id] for token_id in added}
        assert sorted((found[token_id] for token_id in added), reverse=True) == best_chances
        num_added += len(children)
        assert session.tree.num_live == len(list(session.tree.live_nodes()))
    assert num_added > 20


def test_many_sessions_get_a_place_each() -> None:
    sessions = [draft_session(random.Random(seed), DraftEstimates()) for seed in range(EXPANSIONS_MAX + 3)]
    chosen = choose_expansions(sessions, StepCurve())
    assert [len(nodes) for nodes in chosen] == [1] * len(sessions)
