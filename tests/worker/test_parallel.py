"""A drafter with a parallel draft model: what one pass guesses is what transformers says with the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from draft_service.drafter import Drafter, DraftStream
from outrider.core.draft.session import NODES_BEFORE_FIRST_COMMIT_MAX, DraftSession
from outrider.core.protocol.messages import Commitment, DraftOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import Node
from outrider.core.schedule.policy import DraftPolicy
from outrider.engine.engine import Engine
from outrider.engine.jobs import Job
from outrider.engine.sample.sampler import Row, Sampler
from tests.engine.tiny_models import VOCAB_SIZE, build
from tests.worker.driven import FixedCurve, Record, drafted

MASK = VOCAB_SIZE - 1
NUM_POSITIONS = 5
PROMPT = [5, 17, 3, 40, 8, 8, 21]
SAMPLINGS = (
    SamplingParams(),
    SamplingParams(temperature=0.8, seed=7),
    SamplingParams(temperature=0.8, seed=8, top_p=0.9, top_k=20, presence_penalty=0.2),
)


def drafter_of(model: PreTrainedModel, *, per_token: float = 0.0) -> Drafter:
    policy = DraftPolicy()
    policy.draft_in_parallel(MASK, NUM_POSITIONS)
    drafter = Drafter(Engine(model, max_sessions=4, max_context=128), policy)
    policy.estimates.curve = FixedCurve(1.0, per_token)
    return drafter


def opened(
    drafter: Drafter,
    sampling: SamplingParams,
    *,
    prompt: Sequence[int] = PROMPT,
    width: int = 1,
    max_run_ahead: int = 60,
) -> DraftStream:
    opening = DraftOpen(
        session_id="s",
        token_ids=prompt,
        num_prompt_tokens=len(prompt),
        sampling=sampling,
        max_run_ahead=max_run_ahead,
        tree_width=width,
        max_length=len(PROMPT) + 60,
        vocab_size=VOCAB_SIZE,
    )
    session = DraftStream(opening, Record())
    drafter.open(session)
    return session


@torch.inference_mode()
def step(drafter: Drafter) -> float | None:
    """As the device thread does it."""
    return drafter.step()


def state_of(drafter: Drafter, session: DraftStream) -> DraftSession:
    return drafter.scheduler.sessions[session].state


def guesses(model: PreTrainedModel, known: list[int], sampling: SamplingParams, num_masks: int) -> list[list[int]]:
    """What the parallel draft model proposes for the places after `known`, eight tokens each, best first: transformers
    over the whole text, and noise of the places' own positions."""
    token_ids = torch.tensor([[*known, *[MASK] * num_masks]])
    with torch.inference_mode():
        logits = model(input_ids=token_ids, position_ids=torch.arange(token_ids.shape[1])[None]).logits[0]
    logits = logits[-1 - num_masks :].clone()
    logits[:, MASK] = -torch.inf
    sampler = Sampler(VOCAB_SIZE, 1, torch.device("cpu"))
    sampler.open(0, sampling, PROMPT, [])
    path = known[len(PROMPT) :] if sampling.penalized else ()
    return sampler.propose(logits, [Row(0, len(known) + index, path) for index in range(1 + num_masks)], 8)[0]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("family", ["qwen3", "llama"])
async def test_the_guesses_of_the_first_pass_are_transformers_own(family: str, sampling: SamplingParams) -> None:
    model = build(family, layers=2)
    drafter = drafter_of(build(family, layers=2))
    session = opened(drafter, sampling)
    step(drafter)
    expected = guesses(model, PROMPT, sampling, NUM_POSITIONS - 1)
    assert drafted(session) == [first for first, *_ in expected]


async def test_a_wide_session_drafts_several_candidates_of_each_place() -> None:
    model = build("qwen3", layers=2)
    drafter = drafter_of(build("qwen3", layers=2))
    session = opened(drafter, SAMPLINGS[1], width=8)
    step(drafter)
    rows = guesses(model, PROMPT, SAMPLINGS[1], NUM_POSITIONS - 1)
    root = state_of(drafter, session).tree.root
    level: list[Node] = [root]
    widths: list[int] = []
    for row in rows:
        level = [child for node in level for child in node.children.values()]
        assert {node.token_id for node in level} <= set(row)
        widths.append(len({node.token_id for node in level}))
    assert min(widths[:2]) > 1
    assert state_of(drafter, session).tree.num_live == 8 + NUM_POSITIONS - 1


@pytest.mark.parametrize("sampling", SAMPLINGS)
async def test_every_node_is_proposed_by_some_chain_that_the_step_ran(sampling: SamplingParams) -> None:
    """Later passes expand several outcomes at once, and lengthen what earlier ones guessed. Each row of each pass is
    what transformers says of the path and so many masks."""
    model = build("llama", layers=2)
    drafter = drafter_of(build("llama", layers=2))
    session = opened(drafter, sampling, width=2)
    root = state_of(drafter, session).tree.root

    def noting(step, outcome, now, settle=drafter.scheduler.settle):  # type: ignore[no-untyped-def]
        for part, proposals in zip(step.parts, outcome, strict=True):
            num_seen: dict[Node, int] = {}
            for node, (token_ids, _) in zip(part.nodes, proposals, strict=True):
                path, num_masks = path_of(root, node), num_seen.get(node, 0)
                num_seen[node] = num_masks + 1
                assert token_ids[:2] == guesses(model, [*PROMPT, *path], sampling, num_masks)[-1][:2]
                chains.append(num_masks)
        num_leaves.append(max(len(set(part.nodes)) for part in step.parts))
        return settle(step, outcome, now)

    chains: list[int] = []
    num_leaves: list[int] = []
    drafter.scheduler.settle = noting  # type: ignore[method-assign]
    for _ in range(3):
        step(drafter)
    assert max(chains) == NUM_POSITIONS - 1
    assert max(num_leaves) > 2, "no pass had several outcomes"
    assert len(chains) > 20


def path_of(root: Node, node: Node) -> list[int]:
    return [] if node is root or node.parent is None else [*path_of(root, node.parent), node.token_id]


async def test_the_mask_is_never_proposed_even_if_nothing_is_likelier() -> None:
    model = build("llama", layers=1)
    with torch.no_grad():
        model.get_output_embeddings().weight[MASK] = 50.0 * model.get_output_embeddings().weight.sum(0)  # type: ignore[union-attr,operator]
    drafter = drafter_of(model)
    sessions = [opened(drafter, replace(sampling, logit_bias=((MASK, 900.0),)), width=2) for sampling in SAMPLINGS]
    for _ in range(6):
        step(drafter)
    for session in sessions:
        assert len(drafted(session)) > NUM_POSITIONS
        assert MASK not in drafted(session)


async def test_nothing_of_masks_is_held_and_what_was_accepted_is_fed() -> None:
    drafter = drafter_of(build("qwen3", layers=2))
    session = opened(drafter, SamplingParams())
    step(drafter)
    state = state_of(drafter, session)
    first = drafted(session)[:3]
    drafter.commit(session, Commitment(len(PROMPT), [*first, 0], rollback=False))
    assert state.num_uncomputed == 3
    step(drafter)
    assert state.num_uncomputed == 0
    place = drafter.admission.place_of(drafter.scheduler.sessions[session])
    slot = drafter.runner.memory.slot(place.slot)  # type: ignore[union-attr]
    assert slot.cached_prefix == [*PROMPT, *first, 0]
    assert MASK not in {cell.token_id for cell in slot.cells.values()}


@pytest.mark.parametrize(("max_run_ahead", "width"), [(3, 1), (7, 2), (256, 8)])
async def test_credit_and_the_lines_end_bound_it(max_run_ahead: int, width: int) -> None:
    drafter = drafter_of(build("llama", layers=1))
    session = opened(drafter, SAMPLINGS[1], width=width, max_run_ahead=max_run_ahead)
    state = state_of(drafter, session)
    for num_nodes_max in (min(max_run_ahead, NODES_BEFORE_FIRST_COMMIT_MAX), max_run_ahead):
        for _ in range(200):
            if step(drafter) is None:
                break
            assert state.tree.num_live <= num_nodes_max
        else:
            raise AssertionError("no end in sight")
        assert state.tree.num_live > num_nodes_max - 2 * width
        assert state._frontier.num_reserved == 0
        drafter.commit(session, Commitment(len(state.line), [0], rollback=True))


@pytest.mark.parametrize(("per_token", "num_masks"), [(0.0, NUM_POSITIONS - 1), (1000.0, 0)])
async def test_masks_are_fed_where_they_are_worth_their_time(per_token: float, num_masks: int) -> None:
    """All of them where a step takes as long whatever it feeds, none where each token takes as long as a step."""
    drafter = drafter_of(build("llama", layers=1), per_token=per_token)
    session = opened(drafter, SamplingParams(), prompt=[5])
    sizes: list[int] = []

    def noting(jobs: list[Job], max_line_tokens: int, step=drafter.runner.engine.step):  # type: ignore[no-untyped-def]
        sizes.append(sum(job.num_masks for job in jobs))
        return step(jobs, max_line_tokens)

    drafter.runner.engine.step = noting  # type: ignore[method-assign]
    step(drafter)
    assert sizes == [num_masks]
    assert len(drafted(session)) == 1 + num_masks


async def test_masks_that_never_help_are_given_up_and_those_that_do_are_kept() -> None:
    """The target agrees with the first guess of each pass alone, or with all of them."""
    num_masks: dict[bool, list[int]] = {}
    for agrees in (False, True):
        drafter = drafter_of(build("llama", layers=1), per_token=0.5)
        session = opened(drafter, SamplingParams(), width=1, max_run_ahead=NUM_POSITIONS)
        num_masks[agrees] = used = []
        for _ in range(11):
            step(drafter)
            state = state_of(drafter, session)
            line = state.line.token_ids
            node, path = state.tree.root, list[int]()
            while node.children:
                node = next(iter(node.children.values()))
                path.append(node.token_id)
            used.append(len(path))
            taken = path if agrees else path[:1]
            extra = next(token for token in range(1, 5) if token not in node.children and token not in path)
            drafter.commit(session, Commitment(len(line), [*taken, extra], rollback=False))
    assert num_masks[True][-1] > num_masks[False][-1]
