"""Runs of the drafter's scheduler: when levels are drafted in a row, and what becomes of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from outrider.core.draft.outlook import Expansion
from outrider.core.draft.windows import MESSAGE_SECONDS
from outrider.core.estimate.rhythm import Rhythm
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.protocol.messages import Commitment, DraftOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.schedule.draft_run import LEVELS_MAX, Burst, DraftRun, Level
from outrider.core.schedule.draft_scheduler import DraftScheduler
from outrider.core.schedule.draft_step import Drafted, DraftStep
from outrider.core.schedule.policy import DraftPolicy

from .driven import VOCAB_SIZE, CountedMemory, steady_curve

LEVEL_SECONDS = 1.0


class Runs:
    """A scheduler whose device always proposes 1 and 2, and has drafted two steps of each session."""

    def __init__(
        self,
        *keys: str,
        verify_levels: float = 20.0,
        memory: CountedMemory | None = None,
        policy: DraftPolicy | None = None,
        **more: Any,
    ) -> None:
        self.memory = memory or CountedMemory()
        self.scheduler: DraftScheduler[str] = DraftScheduler(
            self.memory, vocab_size=VOCAB_SIZE, step_tokens_max=512, policy=policy
        )
        self.scheduler.policy.estimates.curve = steady_curve(LEVEL_SECONDS, 0.0)
        opening = DraftOpen(
            session_id="",
            token_ids=range(4),
            num_prompt_tokens=4,
            sampling=SamplingParams(),
            max_run_ahead=64,
            tree_width=2,
            max_length=100,
            vocab_size=VOCAB_SIZE,
        )
        for key in keys:
            self.scheduler.open(key, replace(opening, **more))
        self.scheduler.admit()
        self.step()
        self.step()
        for key in keys:
            self.commit(key, [1], verify_levels)

    def commit(self, key: str, token_ids: list[int], verify_levels: float = 20.0) -> None:
        position = len(self.scheduler.sessions[key].token_ids)
        verify_ms = verify_levels * LEVEL_SECONDS * 1000.0
        assert not self.scheduler.commit(key, Commitment(position, token_ids, False, verify_ms, 0.05))

    def step(self) -> None:
        step = self.scheduler.plan(0.0)
        assert isinstance(step, DraftStep)
        self.settle(step)

    def settle(self, step: DraftStep[str]) -> list[Any]:
        for part in step.parts:
            self.memory.feed(part.slot, len(part.session.token_ids))
        proposals = [[([1, 2], [1.0, 1.0])] * len(part.nodes) for part in step.parts]
        return list(self.scheduler.settle(step, proposals, 1.0))

    def run(self, num_levels_max: int = LEVELS_MAX) -> DraftRun[str]:
        run = self.scheduler.plan(0.0, num_levels_max)
        assert isinstance(run, DraftRun)
        return run


def is_step(plan: object) -> bool:
    return isinstance(plan, DraftStep)


def test_a_burst_ends_where_a_window_would_be_due() -> None:
    """By the number of levels that is foreseen, and by the time that so many take, if they turn out to be slower."""
    runs = Runs("a", verify_levels=40.0)
    assert runs.run().burst(1.0, LEVELS_MAX) == Burst(1, 0.5 * LEVEL_SECONDS)  # the next guesses are worth a window
    state = runs.scheduler.sessions["a"].state
    state.tree.root.path_log_prob += 4.0  # as if all that is left were unlikely
    run = runs.run()
    gain_min = MESSAGE_SECONDS / Rhythm().token_seconds
    num_by_gain = math.ceil(gain_min / math.exp(state.best() or 0.0))
    assert 2 < num_by_gain < LEVELS_MAX
    assert run.burst(1.0, LEVELS_MAX) == Burst(num_by_gain, (num_by_gain - 0.5) * LEVEL_SECONDS)
    assert run.burst(1.0, 2).num_levels == 2
    run.settle([Level(num_by_gain, 1.0)])
    assert run.burst(1.0, LEVELS_MAX).num_levels == 1
    state.tree.root.path_log_prob += 3.0
    assert runs.run().burst(1.0, LEVELS_MAX).num_levels == LEVELS_MAX


def test_in_turn_with_a_verifier_a_burst_is_as_long_as_it_may() -> None:
    runs = Runs("a", verify_levels=40.0)
    runs.scheduler.policy.in_turn = True
    assert runs.run().burst(1.0, 5) == Burst(5, math.inf)


def test_who_runs_says_how_far() -> None:
    runs = Runs("a")
    assert runs.run(2).num_levels_max == 2
    assert is_step(runs.scheduler.plan(0.0))


def test_after_a_miss_a_run_begins_at_the_end_of_the_line_and_sends_its_first_guesses_at_once() -> None:
    runs = Runs("a", "b")
    assert runs.run().burst(0.0, LEVELS_MAX).num_levels == 1
    for key in "ab":
        runs.scheduler.sessions[key].state.tree.root.path_log_prob += 7.0  # as if all that is left were unlikely
    assert runs.run().burst(0.0, LEVELS_MAX).num_levels > 1
    runs.commit("b", [50])
    run = runs.run()
    assert {part.session.key for part in run.parts} == {"a", "b"}
    assert run.burst(0.0, LEVELS_MAX).num_levels == 1
    root = runs.scheduler.sessions["b"].state.tree.root
    [index] = [index for index, part in enumerate(run.parts) if part.session.key == "b"]
    assert list(run.parts[index].nodes) == [root]
    place = sum(len(part.nodes) for part in run.parts[:index])
    run.grow([Expansion(index, -1 - place, root.token_id, [1, 2], [3, 17])])
    [(key, drafted)] = runs.scheduler.settle_run(run, [Level(1, 1.0)], 0.0, 1.0)
    assert key == "b"
    assert isinstance(drafted, Drafted)
    assert list(drafted.window.token_ids) == [1, 2]


def test_a_device_that_does_not_begin_at_the_end_of_a_line_takes_a_step_there() -> None:
    runs = Runs("a", "b")
    runs.commit("b", [50])
    step = runs.scheduler.plan(0.0, LEVELS_MAX, expands_lines=False)
    assert isinstance(step, DraftStep)
    runs.settle(step)
    assert {part.session.key for part in runs.run().parts} == {"a", "b"}


@pytest.mark.parametrize(
    "sampling",
    [SamplingParams(presence_penalty=0.5), SamplingParams(logit_bias=((3, 1.0),))],
    ids=["penalties", "a bias"],
)
def test_what_more_than_the_model_decides_is_a_step(sampling: SamplingParams) -> None:
    assert is_step(Runs("a", sampling=sampling).scheduler.plan(0.0, LEVELS_MAX))


def test_a_policy_that_looks_at_nodes_is_a_step() -> None:
    assert is_step(Runs("a", policy=DraftPolicy(expands=lambda node: True)).scheduler.plan(0.0, LEVELS_MAX))
    assert is_step(Runs("a", policy=DraftPolicy(sends_at_once=True)).scheduler.plan(0.0, LEVELS_MAX))


def test_who_prefills_is_not_kept_waiting() -> None:
    runs = Runs("a")
    runs.scheduler.open("b", runs.scheduler.sessions["a"].opening)
    runs.scheduler.admit()
    assert is_step(runs.scheduler.plan(0.0, LEVELS_MAX))


def test_a_run_wants_room_for_all_that_it_may_feed() -> None:
    memory = CountedMemory(num_blocks=4)
    assert is_step(Runs("a", memory=memory).scheduler.plan(0.0, LEVELS_MAX))


def test_what_a_run_has_drafted_is_sent_and_teaches_the_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs("a")
    run = runs.run()
    [part] = run.parts
    first = part.nodes[0]
    run.grow([Expansion(0, -1, first.token_id, [1, 2], [3, 17])])
    run.grow([Expansion(0, 0, 2, [1, 2], [3, 17])])
    assert set(first.children[2].children) == {1, 2}
    assert first.proposals is not None
    [(key, drafted)] = runs.scheduler.settle_run(run, [Level(1, 2.0), Level(3, 4.0)], 0.0, 7.0)
    assert key == "a"
    assert isinstance(drafted, Drafted)
    assert drafted.window.draft_ms == pytest.approx(7000.0)
    observed: list[tuple[int, float]] = []
    monkeypatch.setattr(StepCurve, "observe", lambda _, num_nodes, seconds: observed.append((num_nodes, seconds)))
    runs.scheduler.observe(8.0)
    assert observed == [(1, 3.0), (3, 5.0)]


def test_a_run_that_came_to_nothing_is_followed_by_a_step() -> None:
    runs = Runs("a")
    runs.scheduler.settle_run(runs.run(), [], 0.0, 1.0)
    step = runs.scheduler.plan(1.0, LEVELS_MAX)
    assert isinstance(step, DraftStep)
    runs.settle(step)
    runs.run()


def test_after_a_run_that_failed_each_session_is_tried_alone() -> None:
    runs = Runs("a", "b")
    run = runs.run()
    for part in run.parts:
        runs.memory.feed(part.slot, 0)
    assert not list(runs.scheduler.settle_run(run, None, 0.0, 1.0))
    for _ in "ab":
        step = runs.scheduler.plan(1.0, LEVELS_MAX)
        assert isinstance(step, DraftStep)
        assert len(step.parts) == 1
        runs.settle(step)
    assert set(runs.scheduler.sessions) == {"a", "b"}


def test_who_finishes_is_not_ended_while_a_run_goes_on() -> None:
    runs = Runs("a")
    runs.scheduler.finish("a")
    run = runs.run()
    assert not [content for _, content in runs.scheduler.flush(0.0) if content is None]
    runs.scheduler.settle_run(run, [Level(1, 1.0)], 0.0, 1.0)
    assert "a" in runs.scheduler.sessions
