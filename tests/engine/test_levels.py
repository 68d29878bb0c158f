"""Levels in one native call draft what steps draft, node by node and bit by bit, and leave the same in the KV cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from draft_service.drafter import Drafter, DraftStream
from outrider.core.protocol.messages import Commitment, DraftOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import Node, path_tokens
from outrider.core.schedule.draft_run import Burst
from outrider.core.schedule.policy import ExpectedGain, VerifyPolicy
from outrider.core.verify.draft_wait import AT_ONCE, Wait
from outrider.core.verify.session import VerifySession
from outrider.engine.compile.levels import LINE_TOKENS_MAX, DraftLevels, LevelLoop, LevelsOutput
from outrider.engine.engine import Engine
from outrider.engine.kv_cache.slots import Slot
from tests.e2e.pair import Pair, all_at_once
from tests.engine.histories import random_line
from tests.engine.tiny_models import VOCAB_SIZE, build
from tests.worker.driven import FixedCurve, Record

pytestmark = pytest.mark.usefixtures("native_operators")

FAMILIES = ("llama", "gemma3", "gpt2")
"""Full and sliding attention, soft caps, rotary and learned positions."""

NUM_LEVELS = 6
VERIFY_MS = 1000.0
"""So long that windows are due by what they promise alone."""

KINDS = (
    SamplingParams(temperature=0.8, seed=1),
    SamplingParams(),
    SamplingParams(temperature=1.1, top_p=0.8, seed=2**63 + 5),
    SamplingParams(temperature=0.9, top_k=5, min_p=0.02, seed=4),
)
PENALIZED = SamplingParams(temperature=0.8, repetition_penalty=1.3, seed=7)
BIASED = SamplingParams(temperature=0.8, logit_bias=((5, 3.0),), seed=7)

Tree = dict[tuple[int, ...], tuple[float, Any]]
"""For each path its logarithm and what was proposed below it."""


class Drafted:
    """Sessions of one drafter, whose steps are taken one by one."""

    def __init__(self, engine: Engine, kinds: Sequence[SamplingParams], vocab_size: int = VOCAB_SIZE) -> None:
        self.drafter = Drafter(engine)
        self.drafter.scheduler.policy.estimates.curve = FixedCurve(1e-3, 1e-4)
        self.num_runs = 0
        begin = Engine.level_loop

        def counted(*arguments: Any) -> Any:
            self.num_runs += 1
            return begin(engine, *arguments)

        engine.level_loop = counted  # type: ignore[method-assign]
        self.sessions = [self._open(index, kind, vocab_size) for index, kind in enumerate(kinds)]
        self.draft(3, at_once=False)
        self.commit(1)

    def _open(self, index: int, kind: SamplingParams, vocab_size: int) -> DraftStream:
        prompt = random_line(9 + 7 * index, seed=index)
        opening = DraftOpen(
            session_id=str(index),
            token_ids=prompt,
            num_prompt_tokens=len(prompt),
            sampling=kind,
            max_run_ahead=96,
            tree_width=0,
            max_length=len(prompt) + 40,
            vocab_size=vocab_size,
        )
        session = DraftStream(opening, Record())
        self.drafter.open(session)
        return session

    def commit(self, num_tokens: int) -> None:
        """The likeliest tokens of each session are committed."""
        for session in self.sessions:
            state = self.drafter.scheduler.sessions[session].state
            node, token_ids = state.tree.root, list[int]()
            for _ in range(num_tokens):
                node = max(node.children.values(), key=lambda child: child.path_log_prob)
                token_ids.append(node.token_id)
            self.drafter.commit(session, Commitment(len(state.line), token_ids, False, VERIFY_MS, 0.05))

    def miss(self, num_tokens: int) -> None:
        """The likeliest tokens, but for the last one: nobody guessed that."""
        for session in self.sessions:
            state = self.drafter.scheduler.sessions[session].state
            node, token_ids = state.tree.root, list[int]()
            while len(token_ids) < num_tokens - 1 and node.children:
                node = max(node.children.values(), key=lambda child: child.path_log_prob)
                token_ids.append(node.token_id)
            token_ids.append(next(token_id for token_id in range(VOCAB_SIZE) if token_id not in node.children))
            self.drafter.commit(session, Commitment(len(state.line), token_ids, True, VERIFY_MS, 0.05))

    @torch.inference_mode()
    def draft(self, num_levels: int, *, at_once: bool) -> None:
        """So many levels, in one run or as so many steps."""
        if at_once:
            self.drafter.num_levels_max = num_levels
            self.drafter.step()
            return
        self.drafter.num_levels_max = 1
        for _ in range(num_levels):
            self.drafter.step()

    def trees(self) -> list[Tree]:
        """What was drafted."""
        return [_tree(self.drafter.scheduler.sessions[session].state.tree.root) for session in self.sessions]

    def held(self) -> list[dict[tuple[int, ...], Tensor]]:
        """For each session and path the keys and values of all layers."""
        slots = [self.drafter.runner.memory.slot(place.slot) for place in self.drafter.admission.seated]
        return [_held(self.drafter.runner.engine, slot) for slot in slots]

    def close(self) -> None:
        for session in self.sessions:
            self.drafter.close(session)


def _tree(root: Node) -> Tree:
    found: Tree = {}
    nodes = [root]
    for node in nodes:
        found[tuple(path_tokens(root, node))] = (node.path_log_prob - root.path_log_prob, node.proposals)
        nodes += node.children.values()
    return found


def _held(engine: Engine, slot: Slot) -> dict[tuple[int, ...], Tensor]:
    cache = engine._model.cache
    paths: dict[int, tuple[int, ...]] = {len(slot.cached_prefix) - 1: ()}
    found: dict[tuple[int, ...], Tensor] = {}
    for cell, content in slot.cells.items():
        paths[cell] = (*paths[content.parent_cell], content.token_id)
        [place] = slot.places([cell])
        found[paths[cell]] = torch.cat([each[place].flatten() for each in (*cache.keys, *cache.values)])
    return found


@cache
def exported(family: str) -> Engine:
    engine = Engine(build(family), max_sessions=4, max_context=128)
    engine.export()
    return engine


def both(engine: Engine, kinds: Sequence[SamplingParams], check: Callable[[Drafted, bool], None], **more: Any) -> None:
    """The same history by steps and by runs, one after the other, and equal in the end."""
    by_steps = Drafted(engine, kinds, **more)
    check(by_steps, False)
    trees, held = by_steps.trees(), by_steps.held()
    assert not by_steps.num_runs
    by_steps.close()
    by_runs = Drafted(engine, kinds, **more)
    check(by_runs, True)
    assert by_runs.num_runs
    assert by_runs.trees() == trees
    for ours, theirs in zip(by_runs.held(), held, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[path], theirs[path]) for path in ours)
    by_runs.close()


@pytest.mark.parametrize("num_sessions", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
async def test_levels_of_a_run_are_those_of_as_many_steps(family: str, num_sessions: int) -> None:
    def check(drafted: Drafted, at_once: bool) -> None:
        depth = max(map(len, drafted.trees()[0]))
        drafted.draft(NUM_LEVELS, at_once=at_once)
        assert max(map(len, drafted.trees()[0])) > depth
        assert drafted.num_runs == at_once
        drafted.commit(2)
        drafted.draft(2, at_once=False)  # steps go on where a run has ended
        drafted.draft(NUM_LEVELS, at_once=at_once)

    both(exported(family), KINDS[:num_sessions], check)


async def test_a_run_that_is_cut_short_leaves_what_steps_go_on_from() -> None:
    def check(drafted: Drafted, at_once: bool) -> None:
        if at_once:
            before = sum(map(len, drafted.held()))
            drafted.drafter.arrivals.announce()
            drafted.draft(NUM_LEVELS, at_once=True)
            assert 0 < sum(map(len, drafted.held())) - before <= 16  # one level
            drafted.drafter.arrivals.take_up()
        else:
            drafted.draft(1, at_once=False)
        drafted.commit(1)
        drafted.draft(1, at_once=False)
        drafted.draft(3, at_once=at_once)

    both(exported("llama"), KINDS, check)


@pytest.mark.parametrize("num_sessions", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
async def test_after_a_miss_a_run_feeds_the_end_of_the_line(family: str, num_sessions: int) -> None:
    """One token of it, or more where the path ended in a guess that was not fed; beside sessions that were right."""

    def check(drafted: Drafted, at_once: bool) -> None:
        for num_tokens in (1, 99, 2):
            num_runs = drafted.num_runs
            drafted.miss(num_tokens)
            assert all(len(tree) == 1 for tree in drafted.trees())
            drafted.draft(NUM_LEVELS, at_once=at_once)
            assert drafted.num_runs - num_runs == at_once
        right, drafted.sessions = drafted.sessions[1:], drafted.sessions[:1]
        drafted.miss(2)
        drafted.sessions += right
        drafted.draft(2, at_once=at_once)

    both(exported(family), KINDS[:num_sessions], check)


async def test_a_line_that_has_grown_by_much_is_fed_by_a_step() -> None:
    drafted = Drafted(exported("llama"), KINDS[:1])
    drafted.drafter.num_levels_max = NUM_LEVELS
    state = drafted.drafter.scheduler.sessions[drafted.sessions[0]].state
    token_ids = random_line(LINE_TOKENS_MAX + 2, seed=9)
    drafted.drafter.commit(drafted.sessions[0], Commitment(len(state.line), token_ids, True, VERIFY_MS, 0.05))
    for _ in range(2):
        drafted.draft(NUM_LEVELS, at_once=True)
    assert drafted.drafter.runner.memory.num_tokens(drafted.drafter.admission.seated[0].slot) == len(state.line)
    assert len(drafted.trees()[0]) > 1
    drafted.close()


async def test_a_level_that_becomes_void_under_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = exported("llama")
    assert isinstance(engine._model.levels, DraftLevels)
    run = engine._model.levels.run

    def check(drafted: Drafted, at_once: bool) -> None:
        drafted.draft(1, at_once=False)
        if at_once:
            trees, held, num_passes = drafted.trees(), drafted.held(), 0

            def outdated(inputs: list[Tensor]) -> list[Tensor]:
                nonlocal num_passes
                num_passes += 1
                drafted.drafter.arrivals.announce(drafted.sessions[0])
                return run(inputs)

            with monkeypatch.context() as pending:
                pending.setattr(engine._model.levels, "run", outdated)
                drafted.draft(NUM_LEVELS, at_once=True)
            assert num_passes == 1
            assert drafted.trees() == trees
            assert [each.keys() for each in drafted.held()] == [each.keys() for each in held]
            drafted.drafter.arrivals.take_up()
        drafted.miss(1)
        drafted.draft(NUM_LEVELS, at_once=at_once)

    both(engine, KINDS[:1], check)


async def test_what_others_have_a_part_in_is_not_void(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = exported("llama")
    assert isinstance(engine._model.levels, DraftLevels)
    run = engine._model.levels.run
    drafted = Drafted(engine, KINDS[:2])
    num_nodes = sum(map(len, drafted.trees()))

    def outdated(inputs: list[Tensor]) -> list[Tensor]:
        drafted.drafter.arrivals.announce(drafted.sessions[0])
        return run(inputs)

    monkeypatch.setattr(engine._model.levels, "run", outdated)
    drafted.draft(NUM_LEVELS, at_once=True)
    assert sum(map(len, drafted.trees())) > num_nodes
    drafted.close()


async def test_tokens_that_the_target_does_not_know_are_not_drafted() -> None:
    def check(drafted: Drafted, at_once: bool) -> None:
        drafted.draft(NUM_LEVELS, at_once=at_once)
        assert all(token_id < VOCAB_SIZE - 9 for tree in drafted.trees() for path in tree for token_id in path)

    both(exported("llama"), KINDS[:2], check, vocab_size=VOCAB_SIZE - 9)


@pytest.mark.parametrize("kind", [PENALIZED, BIASED], ids=["penalized", "biased"])
async def test_what_python_must_process_is_drafted_by_steps(kind: SamplingParams) -> None:
    drafted = Drafted(exported("llama"), [*KINDS[:1], kind])
    num_nodes = sum(map(len, drafted.trees()))
    for _ in range(3):
        drafted.draft(NUM_LEVELS, at_once=True)
    assert not drafted.num_runs
    assert sum(map(len, drafted.trees())) > num_nodes
    drafted.close()


async def test_where_rounding_may_decide_a_step_chooses() -> None:
    """A top-p at which a token's probabilities stand exactly is doubtful for the native operator."""
    engine = exported("llama")
    drafted = Drafted(engine, KINDS[:1])
    place = drafted.drafter.admission.seated[0].slot
    drafted.drafter.runner.sampler._shaping[2, place] = math.nextafter(0.0, 1.0)  # the first token is at its bound
    num_nodes = len(drafted.trees()[0])
    for _ in range(4):
        drafted.draft(NUM_LEVELS, at_once=True)
    assert drafted.num_runs
    assert len(drafted.trees()[0]) > num_nodes
    drafted.close()


async def test_a_run_that_fails_costs_nobody_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = exported("llama")
    drafted = Drafted(engine, KINDS)
    trees = drafted.trees()
    assert engine._model.levels is not None
    with monkeypatch.context() as broken:
        broken.setattr(engine._model.levels, "run", lambda inputs: 1 / 0)
        drafted.draft(NUM_LEVELS, at_once=True)
    assert drafted.num_runs == 1
    assert drafted.held() == [{}] * len(KINDS)
    assert drafted.trees() == trees
    drafted.draft(len(KINDS), at_once=False)  # each alone, its line fed anew
    drafted.draft(NUM_LEVELS, at_once=True)
    assert drafted.num_runs == 2
    for before, after in zip(trees, drafted.trees(), strict=True):
        assert before.keys() < after.keys()
    drafted.close()


LONG_SECONDS = 60.0
"""By far more than a guess takes."""


class WithGuesses(ExpectedGain):
    """No round goes without a guess that it has room for, however long a busy machine takes to draft one."""

    def wait(self, session: VerifySession, now: float, num_beside: int) -> Wait:
        has_room = session.tree.root.position < session.candidates.max_position
        return AT_ONCE if session.tree.num_live or not has_room else Wait(LONG_SECONDS, LONG_SECONDS, LONG_SECONDS)


@pytest.mark.parametrize("sampling", KINDS[:2], ids=["sampled", "greedy"])
def test_a_pair_whose_drafter_runs_writes_what_its_target_writes(
    sampling: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On their own threads, with commits that come in the midst of runs. The draft is the target, a little off."""
    target = Engine(build("llama"), max_sessions=4, max_context=128)
    draft = build("llama")
    noise = torch.Generator().manual_seed(1)
    for parameter in draft.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=noise)
    runs = Engine(draft, max_sessions=4, max_context=128)
    runs.export()
    levels: list[int] = []
    drafted = LevelLoop.draft

    def counted(loop: LevelLoop, burst: Burst) -> LevelsOutput:
        output = drafted(loop, burst)
        levels.append(len(output.levels))
        return output

    monkeypatch.setattr(LevelLoop, "draft", counted)
    few = [random_line(5 + 9 * index, seed=index) for index in range(4)]
    with Pair.running(target, runs, VerifyPolicy(rounds=lambda opening: WithGuesses())) as pair:
        alone = all_at_once(pair, few, sampling, num_tokens=48, tree_width=0)
        together = all_at_once(pair, few, sampling, num_tokens=48, tree_width=3)
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]
    assert sum(levels)
    assert sum(each.statistics.num_accepted_tokens for each in together) > 0
