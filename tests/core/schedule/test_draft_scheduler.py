"""The drafter's scheduler alone: what is expanded, when it is sent, and what failures and a small memory do to that."""

from __future__ import annotations

from outrider.core.protocol.errors import ProtocolViolationError, SlotsExhaustedError, StepFailedError
from outrider.core.protocol.messages import Commitment, Opened
from outrider.core.schedule.draft_step import Drafted, DraftStep
from outrider.core.schedule.subtree import LINE_END

from .driven import CountedMemory, DrafterByHand


def keys(step: object) -> list[str]:
    assert isinstance(step, DraftStep)
    return [part.session.key for part in step.parts]


def num_drafted(by_hand: DrafterByHand, key: str) -> int:
    return sum(len(drafted.window) for drafted in by_hand.told(key, Drafted))


def test_it_drafts_up_to_its_credit_and_then_rests() -> None:
    by_hand = DrafterByHand()
    by_hand.open("a", max_run_ahead=8)
    step = by_hand.plan()
    [part] = step.parts
    assert (part.subtree.wanted, part.num_line_tokens) == ([LINE_END], 4)
    by_hand.succeed(step)
    by_hand.run()
    assert 6 <= num_drafted(by_hand, "a") <= 8
    assert by_hand.plan() is None
    drafted = by_hand.told("a", Drafted)
    assert drafted[0].since == 0.0
    assert drafted[0].window.draft_ms == 1000.0


def test_a_commit_gives_credit_back_and_reaches_the_sampling_state() -> None:
    by_hand = DrafterByHand()
    by_hand.open("a")
    by_hand.run()
    num_before = num_drafted(by_hand, "a")
    by_hand.hear(by_hand.scheduler.commit("a", Commitment(4, [1, 1], rollback=False)))
    assert by_hand.memory.committed == [(0, [1, 1])]
    by_hand.run()
    assert num_drafted(by_hand, "a") > num_before


def test_in_turn_with_a_verifier_it_sends_when_it_is_asked() -> None:
    by_hand = DrafterByHand()
    by_hand.scheduler.policy.in_turn = True
    by_hand.open("a")
    by_hand.open("b")
    by_hand.run()
    assert not num_drafted(by_hand, "a")
    by_hand.hear(by_hand.scheduler.send_all(by_hand.now))
    assert num_drafted(by_hand, "a") == num_drafted(by_hand, "b") == 8
    assert len(by_hand.told("a", Drafted)) == 1
    assert not list(by_hand.scheduler.send_all(by_hand.now))


def test_a_drafter_has_no_queue() -> None:
    by_hand = DrafterByHand(CountedMemory(num_slots=1))
    by_hand.open("a")
    by_hand.open("b")
    assert by_hand.told("a", Opened)
    assert by_hand.told("b", SlotsExhaustedError)
    by_hand.scheduler.close("a")
    by_hand.open("c")
    assert by_hand.told("c", Opened)


def test_a_commit_that_breaks_the_protocol_ends_its_session() -> None:
    by_hand = DrafterByHand()
    by_hand.open("a")
    by_hand.open("b")
    by_hand.hear(by_hand.scheduler.commit("a", Commitment(4, [10**6], rollback=False)))
    assert by_hand.told("a", ProtocolViolationError)
    assert by_hand.scheduler.commit("a", Commitment(4, [1], rollback=False)) == ()
    assert keys(by_hand.plan()) == ["b"]


def test_who_finishes_drafts_what_is_worth_it_and_ends() -> None:
    by_hand = DrafterByHand()
    by_hand.open("a")
    by_hand.scheduler.finish("a")
    by_hand.run()
    assert num_drafted(by_hand, "a")
    assert by_hand.events[-1] == ("a", None)
    assert by_hand.memory.is_empty


def test_a_step_that_fails_for_all_is_tried_for_each_and_ends_only_the_one_it_fails_for() -> None:
    by_hand = DrafterByHand()
    for key in ("a", "bad", "b"):
        by_hand.open(key)
    step = by_hand.plan()
    assert sorted(keys(step)) == ["a", "b", "bad"]
    by_hand.fail(step)
    for _ in range(3):
        alone = by_hand.plan()
        [key] = keys(alone)
        (by_hand.fail if key == "bad" else by_hand.succeed)(alone)
    assert [key for key, content in by_hand.events if isinstance(content, StepFailedError)] == ["bad"]
    by_hand.run()
    assert num_drafted(by_hand, "a") == num_drafted(by_hand, "b") > 0


def test_who_finishes_is_not_ended_while_a_failure_is_looked_into() -> None:
    by_hand = DrafterByHand()
    for key in ("a", "b"):
        by_hand.open(key)
        by_hand.scheduler.finish(key)
    by_hand.fail(by_hand.plan())
    by_hand.run()
    assert num_drafted(by_hand, "a") == num_drafted(by_hand, "b") > 0
    assert by_hand.memory.is_empty


def test_who_is_preempted_keeps_its_nodes_and_drafts_on_when_there_is_room() -> None:
    by_hand = DrafterByHand(CountedMemory(num_blocks=20))
    by_hand.open("a")
    by_hand.open("b")
    by_hand.run()
    by_hand.memory._num_blocks = 8
    for key in ("a", "b"):
        by_hand.hear(by_hand.scheduler.commit(key, Commitment(4, [1] * 80, rollback=False)))
    step = by_hand.plan()
    assert keys(step) == ["a"]
    assert by_hand.memory.forgotten == [1]
    by_hand.succeed(step)
    by_hand.run()
    num_before = num_drafted(by_hand, "b")
    by_hand.scheduler.close("a")
    by_hand.run()
    assert num_drafted(by_hand, "b") > num_before
    assert len(by_hand.told("b", Opened)) == 1
