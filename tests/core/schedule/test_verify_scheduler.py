"""The verifier's scheduler alone: admission, preemption, chunked prefill, waiting, failures; no device, no clock."""

from __future__ import annotations

import pytest

from outrider.core.protocol.errors import ProtocolViolationError, SlotsExhaustedError, StepFailedError
from outrider.core.protocol.messages import DraftWindow, FinishReason, Opened, VerifyFinished
from outrider.core.schedule.step import WaitUntil
from outrider.core.schedule.verify_step import Decided, VerifyStep
from outrider.core.verify.draft_wait import Wait
from outrider.core.verify.selection import Candidates
from outrider.core.verify.session import VerifySession

from .driven import TOKEN, CountedMemory, VerifierByHand, steady_curve


def keys(step: object) -> list[str]:
    assert isinstance(step, VerifyStep)
    return [part.session.key for part in step.parts]


def test_a_session_from_its_opening_to_its_end() -> None:
    by_hand = VerifierByHand()
    by_hand.open("a", num_tokens=3)
    by_hand.run()
    assert [type(content) for _, content in by_hand.events] == [Opened, *[Decided] * 3, VerifyFinished, type(None)]
    assert [decided.verdict.token_ids for decided in by_hand.told("a", Decided)] == [[TOKEN]] * 3
    assert by_hand.told("a", VerifyFinished) == [VerifyFinished(FinishReason.LENGTH)]
    assert [token_ids for _, token_ids in by_hand.memory.committed] == [[TOKEN]] * 3
    assert not by_hand.scheduler.sessions
    assert by_hand.memory.is_empty


def test_with_nothing_to_do_there_is_no_plan() -> None:
    assert VerifierByHand().plan() is None


def test_who_finds_no_slot_waits_and_who_may_not_wait_is_refused() -> None:
    by_hand = VerifierByHand(CountedMemory(num_slots=1), max_queue=1)
    for key in ("a", "b", "c"):
        by_hand.open(key)
    assert keys(by_hand.plan()) == ["a"]
    assert [key for key, content in by_hand.events if isinstance(content, SlotsExhaustedError)] == ["c"]
    assert not by_hand.told("b", Opened)
    by_hand.run()
    assert [key for key, content in by_hand.events if isinstance(content, VerifyFinished)] == ["a", "b"]
    assert by_hand.memory.is_empty


def test_an_early_deadline_goes_before_an_early_arrival() -> None:
    by_hand = VerifierByHand(CountedMemory(num_slots=1))
    for key, time_left_ms in (("a", None), ("b", 9000), ("c", 500)):
        by_hand.open(key, time_left_ms=time_left_ms)
    by_hand.run()
    assert [key for key, content in by_hand.events if isinstance(content, Opened)] == ["c", "b", "a"]


def test_a_long_prompt_is_fed_in_chunks_beside_one_that_decodes() -> None:
    by_hand = VerifierByHand()
    by_hand.scheduler.policy.estimates.curve = steady_curve(1.0, 0.125)
    by_hand.open("decoding", num_tokens=100)
    by_hand.succeed(by_hand.plan())
    by_hand.open("reader", num_prompt_tokens=40)
    chunks: list[int] = []
    while not by_hand.told("reader", Decided):
        step = by_hand.plan()
        assert keys(step) == ["decoding", "reader"]
        chunks.append(step.parts[1].num_line_tokens)
        assert step.num_line_tokens == 1 + chunks[-1]
        by_hand.succeed(step)
    assert sum(chunks) == 40
    assert len(chunks) > 1
    assert len(by_hand.told("decoding", Decided)) == 1 + len(chunks)


def test_drafts_are_scored_in_the_round_that_ends_the_prompt_and_what_agrees_is_accepted() -> None:
    by_hand = VerifierByHand()
    by_hand.open("a", num_tokens=6)
    by_hand.graft("a", [TOKEN, TOKEN, TOKEN + 1])
    step = by_hand.plan()
    assert [node.token_id for node in step.parts[0].nodes] == [TOKEN, TOKEN, TOKEN + 1]
    by_hand.succeed(step)
    [decided] = by_hand.told("a", Decided)
    assert decided.verdict.token_ids == [TOKEN] * 3
    assert (decided.verdict.num_accepted, decided.verdict.num_draft_tokens, decided.rows) == (2, 3, [0, 1, 2])


def test_rows_are_counted_through_the_whole_step() -> None:
    by_hand = VerifierByHand()
    for key in ("a", "b"):
        by_hand.open(key, num_tokens=6)
        by_hand.graft(key, [TOKEN, TOKEN])
    by_hand.succeed(by_hand.plan())
    assert [decided.rows for key in ("a", "b") for decided in by_hand.told(key, Decided)] == [[0, 1, 2], [3, 4, 5]]


class PatientRounds:
    """Waits a second for drafts, always."""

    def observe(self, session: VerifySession, grafted: object) -> None:
        pass

    def wait(self, session: VerifySession, now: float, num_beside: int) -> Wait:
        return Wait(1.0, 1.0, 9.0)

    def candidates(self, session: VerifySession) -> Candidates:
        return session.candidates


def test_a_round_waits_as_its_policy_says_and_goes_then() -> None:
    by_hand = VerifierByHand()
    by_hand.scheduler.policy.rounds = lambda opening: PatientRounds()
    by_hand.open("a", expect_drafts=True)
    by_hand.succeed(by_hand.plan())
    asked_at = by_hand.now
    assert by_hand.plan() == WaitUntil(asked_at + 1.0)
    by_hand.now += 0.5
    assert by_hand.plan() == WaitUntil(asked_at + 1.0)
    by_hand.now += 0.5
    assert keys(by_hand.plan()) == ["a"]


def test_a_verdict_says_by_the_drafters_clock_what_would_have_been_in_time() -> None:
    by_hand = VerifierByHand()
    by_hand.open("a", num_tokens=10)
    by_hand.succeed(by_hand.plan())
    by_hand.graft("a", [TOKEN], sent=100.0)
    by_hand.scheduler.end_drafts("a")
    by_hand.now += 2.0
    by_hand.succeed(by_hand.plan())
    assert [decided.verdict.cutoff_ms for decided in by_hand.told("a", Decided)] == [0.0, 102_000.0]


def test_no_round_waits_for_drafts_that_will_not_come() -> None:
    by_hand = VerifierByHand()
    by_hand.scheduler.policy.rounds = lambda opening: PatientRounds()
    by_hand.open("a", expect_drafts=True)
    by_hand.succeed(by_hand.plan())
    assert isinstance(by_hand.plan(), WaitUntil)
    by_hand.scheduler.end_drafts("a")
    # What is due later was set before: it is reconsidered, and due at once.
    assert keys(by_hand.plan()) == ["a"]


def test_a_step_that_fails_for_all_is_tried_for_each_and_ends_only_the_one_it_fails_for() -> None:
    by_hand = VerifierByHand()
    for key in ("a", "bad", "b"):
        by_hand.open(key)
    step = by_hand.plan()
    assert keys(step) == ["a", "bad", "b"]
    by_hand.fail(step)
    assert not [content for _, content in by_hand.events if isinstance(content, StepFailedError)]
    for _ in range(3):
        alone = by_hand.plan()
        [key] = keys(alone)
        (by_hand.fail if key == "bad" else by_hand.succeed)(alone)
    assert [key for key, content in by_hand.events if isinstance(content, StepFailedError)] == ["bad"]
    assert keys(by_hand.plan()) == ["a", "b"]
    by_hand.run()
    assert by_hand.told("a", VerifyFinished)
    assert by_hand.told("b", VerifyFinished)
    assert by_hand.memory.is_empty


def test_who_leaves_after_a_common_failure_is_not_tried_again() -> None:
    by_hand = VerifierByHand()
    for key in ("a", "b"):
        by_hand.open(key)
    by_hand.fail(by_hand.plan())
    by_hand.scheduler.close("a")
    assert keys(by_hand.plan()) == ["b"]


def test_lines_that_outgrow_the_memory_preempt_the_last_to_come_and_all_end() -> None:
    """Three lines of up to 104 tokens need 21 blocks; there are 18. The first is never preempted."""
    by_hand = VerifierByHand(CountedMemory(num_blocks=18))
    for key in ("a", "b", "c"):
        by_hand.open(key, num_prompt_tokens=4, num_tokens=100)
    by_hand.run(steps_max=2000)
    assert set(by_hand.memory.forgotten) == {2}
    assert [len(by_hand.told(key, Decided)) for key in ("a", "b", "c")] == [100] * 3
    assert [len(by_hand.told(key, Opened)) for key in ("a", "b", "c")] == [1] * 3
    assert by_hand.memory.is_empty


def test_a_tree_gives_way_before_a_session_does() -> None:
    by_hand = VerifierByHand(CountedMemory(num_blocks=10))
    by_hand.open("a", num_prompt_tokens=15, num_tokens=40)
    by_hand.open("b", num_prompt_tokens=15, num_tokens=40)
    by_hand.succeed(by_hand.plan())
    by_hand.memory._num_blocks = 2  # each line fills its block to the last token
    by_hand.graft("a", [TOKEN] * 8)
    by_hand.graft("b", [TOKEN] * 8)
    step = by_hand.plan()
    assert [part.nodes for part in step.parts] == [[], []]
    assert not by_hand.memory.forgotten


def test_nonsense_ends_its_own_session_wherever_that_is() -> None:
    by_hand = VerifierByHand(CountedMemory(num_slots=1))
    by_hand.open("a")
    by_hand.open("waits")
    by_hand.succeed(by_hand.plan())
    nonsense = DraftWindow(3, 1, [0], [10**6], [-0.1])
    by_hand.hear(by_hand.scheduler.graft("waits", nonsense, 0.0))
    by_hand.hear(by_hand.scheduler.graft("waits", nonsense, 0.0))
    assert len(by_hand.told("waits", ProtocolViolationError)) == 1
    by_hand.run()
    assert by_hand.told("a", VerifyFinished)
    assert by_hand.memory.is_empty


@pytest.mark.parametrize("when", ["queued", "seated", "ended", "never there"])
def test_closing_is_harmless_at_any_time(when: str) -> None:
    by_hand = VerifierByHand()
    if when != "never there":
        by_hand.open("a")
    if when in ("seated", "ended"):
        by_hand.succeed(by_hand.plan())
    if when == "ended":
        by_hand.run()
    for _ in range(2):
        by_hand.scheduler.close("a")
    assert by_hand.plan() is None
    assert by_hand.memory.is_empty
