"""What a drafter asks its engine and its sampler for, to expand nodes."""

from __future__ import annotations

import random

import pytest

from draft_service.batch import expansion_job, expansion_row
from outrider.core.draft.session import DraftSession
from outrider.core.protocol.messages import DraftOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import Node
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.kv_cache.blocks import BlockPool
from outrider.engine.kv_cache.slots import Slot

LINE = [3, 1, 4]


def session_of(sampling: SamplingParams) -> DraftSession:
    return DraftSession(
        DraftOpen(
            session_id="s",
            token_ids=LINE,
            num_prompt_tokens=len(LINE),
            sampling=sampling,
            max_run_ahead=64,
            tree_width=4,
            max_length=100,
            vocab_size=50,
        )
    )


def grown(session: DraftSession, rng: random.Random) -> list[Node]:
    """The root and up to 20 nodes below it."""
    nodes = [session.tree.root]
    for _ in range(rng.randrange(20)):
        node = session.tree.attach(rng.choice(nodes), rng.randrange(5), -1.0)
        assert node is not None
        nodes.append(node)
    return nodes


def path(node: Node, root: Node) -> list[int]:
    """The token ids from below `root` to `node`."""
    return [] if node is root or node.parent is None else [*path(node.parent, root), node.token_id]


def path_in(job: Job, node: int) -> list[int]:
    return [] if node == LINE_END else [*path_in(job, job.parents[node]), job.token_ids[node]]


@pytest.mark.parametrize("seed", range(30))
def test_a_job_asks_for_each_node_by_its_path_and_feeds_no_token_twice(seed: int) -> None:
    rng = random.Random(seed)
    session, slot = session_of(SamplingParams()), Slot(0, 100, BlockPool(8, 16))
    wanted = list(dict.fromkeys(rng.choices(grown(session, rng), k=6)))
    job = expansion_job(slot, session, wanted)
    assert job.line is session.line.token_ids
    assert [path_in(job, node) for node in job.wanted] == [path(node, session.tree.root) for node in wanted]
    assert all(parent < node for node, parent in enumerate(job.parents))
    needed = {tuple(path(node, session.tree.root)[:depth]) for node in wanted for depth in range(1, 21)} - {()}
    assert sorted(tuple(path_in(job, node)) for node in range(len(job.token_ids))) == sorted(needed)


@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_a_row_says_which_tokens_stand_before_it_where_penalties_count_them(penalty: float) -> None:
    session, slot = session_of(SamplingParams(presence_penalty=penalty)), 2
    node = session.tree.root
    for token_id in (7, 8, 7):
        child = session.tree.attach(node, token_id, -0.1)
        assert child is not None
        node = child
    row = expansion_row(slot, session, node)
    assert (row.slot, row.position) == (2, len(LINE) + 3)
    assert list(row.path) == ([7, 8, 7] if penalty else [])
    assert list(expansion_row(slot, session, session.tree.root).path) == []
