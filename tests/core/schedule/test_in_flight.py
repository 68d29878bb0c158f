"""The verifier's scheduler with steps in flight: two groups, each session in one step, and what happens meanwhile."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

from outrider.core.estimate.overlap import Overlap
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.protocol.errors import ProtocolViolationError, StepFailedError
from outrider.core.protocol.messages import DraftWindow, Opened, VerifyFinished
from outrider.core.schedule.policy import VerifyPolicy
from outrider.core.schedule.step import WaitUntil
from outrider.core.schedule.verify_scheduler import VerifyScheduler
from outrider.core.schedule.verify_step import Decided, VerifyOutcome, VerifyStep

from .driven import TOKEN, CountedMemory, VerifierByHand
from .test_verify_scheduler import keys


class InHalves(Overlap):
    """Two groups wherever there are two sessions."""

    def group_size(self, num_sessions: int, together: StepCurve, apart: StepCurve) -> int:
        return (num_sessions + 1) // 2 if num_sessions > 1 else num_sessions


class OverlappingByHand(VerifierByHand):
    """A verifier whose device may compute one step while another one is planned."""

    def __init__(self, memory: CountedMemory | None = None, *, overlap: Overlap | None = None, **more: Any) -> None:
        super().__init__(memory, **more)
        curve = self.scheduler.policy.estimates.curve
        self.scheduler = VerifyScheduler(
            self.memory,
            vocab_size=100,
            eos_token_ids=(),
            step_tokens_max=512,
            max_queue=100,
            policy=VerifyPolicy(overlap=overlap or InHalves()),
        )
        self.scheduler.policy.estimates.curve = curve
        self.in_flight: deque[VerifyStep[str]] = deque()

    def launch(self) -> list[str]:
        """Plans a step and launches it. Returns whose it is."""
        while isinstance(step := self.plan(), WaitUntil):
            self.now = step.time
        assert isinstance(step, VerifyStep)
        self.fly(step)
        return keys(step)

    def fly(self, step: VerifyStep[str]) -> None:
        """Launches a step: as an engine does, the memory notes at once what it feeds."""
        flying = {part.session.key for each in self.in_flight for part in each.parts}
        assert flying.isdisjoint(keys(step)), "a session is in two steps"
        for part in step.parts:
            held = self.memory.num_tokens(part.slot) + part.num_line_tokens
            self.memory.feed(part.slot, min(held, len(part.session.token_ids)))
        self.scheduler.launch(step)
        self.in_flight.append(step)

    def collect(self, *, fails: bool = False) -> None:
        """The oldest step is over."""
        step = self.in_flight.popleft()
        if fails:
            self.fail(step)
            return
        started, self.now = self.now, self.now + 1.0
        choices = [
            [TOKEN] * (1 + len(part.nodes))
            if self.memory.num_tokens(part.slot) == len(part.session.token_ids)
            else None
            for part in step.parts
        ]
        self.hear(self.scheduler.settle(step, VerifyOutcome(started, 1.0, choices), self.now))
        self.scheduler.observe(1.0)

    def turn(self) -> None:
        """As a driver has it: launches what is planned, or waits for the oldest."""
        step = self.plan()
        if isinstance(step, VerifyStep):
            self.fly(step)
        elif self.in_flight:
            self.collect()
        elif step is not None:
            self.now = max(self.now, step.time)

    def opened(self, *names: str, **more: Any) -> OverlappingByHand:
        """With these sessions, whose lines are fed."""
        for name in names:
            self.open(name, **more)
        while any(seated.is_prefilling for seated in self.scheduler.admission.seated) or not self.events:
            self.launch()
            self.collect()
        self.events.clear()
        return self


def test_two_groups_take_turns_and_one_computes_while_the_other_is_decided() -> None:
    by_hand = OverlappingByHand().opened("a", "b", "c", "d", num_tokens=30)
    first, second = by_hand.launch(), by_hand.launch()
    assert (len(first), len(second)) == (2, 2)
    assert {*first, *second} == {"a", "b", "c", "d"}
    assert by_hand.plan() is None, "two are in flight"
    for _ in range(6):
        by_hand.collect()
        assert by_hand.launch() == first, "those that were decided, while the others compute"
        first, second = second, first
    assert {len(by_hand.told(key, Decided)) for key in "abcd"} == {3}


def test_steps_are_settled_in_the_order_of_their_launches() -> None:
    by_hand = OverlappingByHand().opened("a", "b", num_tokens=30)
    by_hand.launch()
    by_hand.launch()
    by_hand.in_flight.reverse()
    with pytest.raises(RuntimeError, match="in the order of their launches"):
        by_hand.collect()


def test_an_odd_one_is_in_one_of_the_groups() -> None:
    by_hand = OverlappingByHand().opened("a", "b", "c", num_tokens=30)
    for _ in range(10):
        by_hand.launch()
        by_hand.launch()
        by_hand.collect()
        by_hand.collect()
    assert {len(by_hand.told(key, Decided)) for key in "abc"} == {10}


def test_where_one_group_is_better_nothing_is_planned_beside_a_step() -> None:
    class Never(Overlap):
        def group_size(self, num_sessions: int, together: StepCurve, apart: StepCurve) -> int:
            return num_sessions

    by_hand = OverlappingByHand(overlap=Never()).opened("a", "b", "c", num_tokens=30)
    for _ in range(3):
        assert by_hand.launch() == ["a", "b", "c"]
        by_hand.open("late")
        assert by_hand.plan() is None
        by_hand.scheduler.close("late")
        by_hand.collect()


def test_one_session_is_never_alone_in_two_groups() -> None:
    by_hand = OverlappingByHand().opened("a", num_tokens=30)
    assert by_hand.launch() == ["a"]
    assert by_hand.plan() is None
    by_hand.collect()
    assert by_hand.launch() == ["a"]


def test_prompts_are_read_beside_either_group_and_by_one_step_at_a_time() -> None:
    by_hand = OverlappingByHand().opened("a", "b", num_tokens=60)
    by_hand.open("reader", num_prompt_tokens=3000)
    seen = 0
    while not by_hand.told("reader", Decided):
        seen += "reader" in by_hand.launch()
        seen += "reader" in by_hand.launch()
        by_hand.collect()
        by_hand.collect()
    assert seen >= 3
    assert by_hand.memory.num_tokens(by_hand.scheduler.admission.seated[-1].slot) == 3000


def test_drafts_that_come_during_a_flight_are_for_the_round_after_it() -> None:
    by_hand = OverlappingByHand().opened("a", "b", num_tokens=30)
    by_hand.graft("a", [TOKEN, TOKEN])
    assert by_hand.launch() == ["a"]
    state = by_hand.scheduler.sessions["a"].state
    by_hand.graft("a", [TOKEN + 1, TOKEN + 1], first_id=3)  # below the same root, as it was when they were drafted
    assert state.tree.num_live == 2, "the tree of a session in flight stays as it is"
    by_hand.collect()
    [decided] = by_hand.told("a", Decided)
    assert (decided.verdict.num_draft_tokens, decided.verdict.num_accepted) == (2, 2)
    assert decided.verdict.num_stale_nodes == 0
    assert by_hand.scheduler.sessions["a"].num_stale_nodes == 2, "something else was decided meanwhile"


def test_the_end_of_drafts_counts_from_the_landing_on() -> None:
    by_hand = OverlappingByHand().opened("a", "b", num_tokens=30, expect_drafts=True)
    by_hand.graft("a", [TOKEN, TOKEN, TOKEN])
    assert by_hand.launch() == ["a"]
    by_hand.scheduler.end_drafts("a")
    assert by_hand.scheduler.sessions["a"].expect_drafts
    by_hand.collect()
    session = by_hand.scheduler.sessions["a"]
    assert not session.expect_drafts


def test_a_breach_of_the_protocol_during_a_flight_ends_the_session_after_its_verdict() -> None:
    by_hand = OverlappingByHand().opened("a", "b", num_tokens=30)
    assert by_hand.launch() == ["a"]
    base = len(by_hand.scheduler.sessions["a"].token_ids) - 1
    by_hand.hear(by_hand.scheduler.graft("a", DraftWindow(base, 1, [5], [TOKEN], [-0.1], draft_ms=1.0), by_hand.now))
    assert not by_hand.events
    by_hand.collect()
    assert [type(content) for key, content in by_hand.events if key == "a"] == [Decided, ProtocolViolationError]
    assert by_hand.scheduler.sessions.keys() == {"b"}


def test_who_is_closed_in_flight_keeps_its_memory_until_the_step_is_settled_and_is_told_nothing() -> None:
    memory = CountedMemory(num_slots=2)
    by_hand = OverlappingByHand(memory).opened("a", "b", num_tokens=30)
    assert by_hand.launch() == ["a"]
    by_hand.graft("a", [TOKEN])
    by_hand.scheduler.close("a")
    by_hand.open("next")
    assert by_hand.launch() == ["b"]
    assert memory.num_free_slots == 0, "the device still writes to its cells"
    by_hand.collect()
    assert memory.num_free_slots == 1
    assert not [content for key, content in by_hand.events if key == "a"]
    by_hand.collect()
    assert by_hand.told("b", Decided)
    assert "next" in by_hand.launch()
    assert memory.num_free_slots == 0


@pytest.mark.parametrize("fails", [False, True])
def test_another_session_of_the_same_key_is_not_taken_for_the_one_in_flight(fails: bool) -> None:
    by_hand = OverlappingByHand().opened("a", "b", num_tokens=30)
    assert by_hand.launch() == ["a"]
    by_hand.scheduler.end_drafts("a")
    by_hand.scheduler.close("a")
    by_hand.open("a", num_tokens=30)
    by_hand.collect(fails=fails)
    assert not by_hand.told("a", Decided)
    assert not by_hand.told("a", StepFailedError)
    assert by_hand.scheduler.sessions["a"].state.candidates.limit == 8
    by_hand.launch()
    assert by_hand.told("a", Opened)


def test_a_step_in_flight_that_fails_is_tried_one_by_one_when_nothing_else_is_in_flight() -> None:
    by_hand = OverlappingByHand().opened("a", "bad", "c", "d", num_tokens=30)
    assert by_hand.launch() == ["a", "bad"]
    assert by_hand.launch() == ["c", "d"]
    by_hand.collect(fails=True)
    assert by_hand.plan() is None, "the others are in flight"
    by_hand.collect()
    assert [len(by_hand.told(key, Decided)) for key in ("c", "d")] == [1, 1]
    for key in ("a", "bad"):
        assert by_hand.launch() == [key]
        by_hand.collect(fails=key == "bad")
    assert [key for key, content in by_hand.events if isinstance(content, StepFailedError)] == ["bad"]
    by_hand.launch()
    by_hand.collect()
    assert by_hand.scheduler.sessions.keys() == {"a", "c", "d"}


def test_a_step_that_cannot_be_launched_leaves_the_one_in_flight_as_it_is() -> None:
    by_hand = OverlappingByHand().opened("a", "b", "c", "d", num_tokens=30)
    assert by_hand.launch() == ["a", "b"]
    step = by_hand.plan()
    by_hand.fail(step)
    assert by_hand.plan() is None
    by_hand.collect()
    assert [len(by_hand.told(key, Decided)) for key in "ab"] == [1, 1]
    assert by_hand.launch() == ["c"]


def test_nobody_is_preempted_while_a_step_is_in_flight() -> None:
    memory = CountedMemory(num_slots=4, num_blocks=24)
    by_hand = OverlappingByHand(memory).opened("a", "b", "c", "d", num_prompt_tokens=15, num_tokens=160)
    while by_hand.scheduler.sessions:
        was_in_flight, num_before = bool(by_hand.in_flight), len(memory.forgotten)
        by_hand.turn()
        assert not was_in_flight or len(memory.forgotten) == num_before
    assert memory.forgotten
    assert {len(by_hand.told(key, VerifyFinished)) for key in "abcd"} == {1}
    assert memory.is_empty


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_each_line_is_decided_once_and_nothing_is_left(seed: int) -> None:
    rng = random.Random(seed)
    memory = CountedMemory(num_slots=5, num_blocks=14)
    by_hand = OverlappingByHand(memory, overlap=InHalves())
    num_opened, lengths = 0, dict[str, int]()
    for _ in range(400):
        match rng.randrange(9):
            case 0 if num_opened < 30:
                key, lengths[f"s{num_opened}"] = f"s{num_opened}", rng.randrange(1, 40)
                by_hand.open(key, num_prompt_tokens=rng.randrange(1, 40), num_tokens=lengths[key])
                num_opened += 1
            case 1 if by_hand.scheduler.sessions and rng.random() < 0.3:
                key = rng.choice(list(by_hand.scheduler.sessions))
                by_hand.scheduler.close(key)
                del lengths[key]
            case 2 | 3 if by_hand.scheduler.sessions:
                by_hand.scheduler.end_drafts(rng.choice(list(by_hand.scheduler.sessions)))
            case 4 | 5 if by_hand.in_flight:
                by_hand.collect(fails=len(by_hand.in_flight[0].parts) > 1 and rng.random() < 0.1)
            case _:
                by_hand.turn()
    while by_hand.scheduler.sessions or by_hand.in_flight:
        by_hand.turn()
    for key, num_tokens in lengths.items():
        decided = [token for each in by_hand.told(key, Decided) for token in each.verdict.token_ids]
        assert decided == [TOKEN] * num_tokens
        assert len(by_hand.told(key, VerifyFinished)) == 1
    assert memory.is_empty
