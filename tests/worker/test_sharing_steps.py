"""Who takes part in a step: all that decode, chunks of prompts beside them, and nobody for ever without."""

from __future__ import annotations

from itertools import pairwise

from outrider.core.protocol.messages import DraftWindow
from outrider.core.schedule.prefill import PASSED_MAX, prefill_budget
from outrider.engine.engine import STEP_TOKENS_MAX
from tests.engine.histories import random_line
from tests.worker.driven import Bench, Drafts, FixedCurve, Session, alone, drafted, engine_of

LONG = random_line(120, seed=3)


def decoding(bench: Bench, num_sessions: int, num_tokens: int) -> list[Session]:
    """Sessions that have read their prompts."""
    sessions = [
        bench.open(f"d{number}", random_line(4, seed=50 + number), num_tokens) for number in range(num_sessions)
    ]
    bench.run(until=lambda: all(session.verdicts for session in sessions))
    bench.passes.clear()
    bench.jobs.clear()
    return sessions


async def test_a_prompt_is_read_in_chunks_beside_those_who_decode() -> None:
    curve = FixedCurve(1.0, 0.125)
    bench = Bench(engine_of(), curve=curve)
    sessions = decoding(bench, 3, 60)
    reader = bench.open("reader", LONG, 4)
    num_verdicts = [len(session.verdicts) for session in sessions]
    bench.run(until=lambda: bool(reader.verdicts))
    budget = prefill_budget(curve, 3, STEP_TOKENS_MAX)
    assert budget == 11
    assert [sum(fed[3:]) for fed in bench.passes] == [budget] * 10 + [len(LONG) - 10 * budget]
    # Nobody who decodes is left out of any of these steps.
    assert all(fed[:3] == [1, 1, 1] for fed in bench.passes)
    assert [len(session.verdicts) - num for session, num in zip(sessions, num_verdicts, strict=True)] == [11] * 3
    bench.run()
    assert reader.token_ids == alone(LONG, 4)


async def test_with_nobody_decoding_prompts_are_read_at_once_and_together() -> None:
    bench = Bench(engine_of(), curve=FixedCurve(0.0, 1.0))
    prompts = [LONG, random_line(100, seed=4), random_line(90, seed=5)]
    sessions = [bench.open(str(number), prompt, 2) for number, prompt in enumerate(prompts)]
    bench.run(until=lambda: bool(bench.passes))
    assert bench.passes == [[90, 100, 120]]
    bench.run()
    assert [session.token_ids for session in sessions] == [alone(prompt, 2) for prompt in prompts]


async def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    curve = FixedCurve(1.0, 0.125)
    bench = Bench(engine_of(), curve=curve)
    decoding(bench, 2, 100)
    long = bench.open("long", LONG, 4)
    bench.run(until=lambda: len(bench.passes) == 2)
    short_prompt = random_line(12, seed=4)
    short = bench.open("short", short_prompt, 4)
    bench.run(until=lambda: bool(short.verdicts))
    assert len(bench.passes) == 2 + -(-len(short_prompt) // prefill_budget(curve, 2, STEP_TOKENS_MAX))
    assert not long.verdicts
    bench.run()
    assert [long.token_ids, short.token_ids] == [alone(LONG, 4), alone(short_prompt, 4)]


async def test_a_long_prompt_is_read_although_short_ones_keep_coming() -> None:
    curve = FixedCurve(0.0, 1.0)
    bench = Bench(engine_of(), curve=curve)
    decoding(bench, 1, 120)
    prompt = random_line(60, seed=5)
    long = bench.open("long", prompt, 2)
    num_short = 0

    def is_read() -> bool:
        nonlocal num_short
        if len(bench.admission.seated) < 4:
            num_short += 1
            bench.open(f"short {num_short}", random_line(8, seed=100 + num_short), 1)
        return bool(long.verdicts)

    bench.run(until=is_read)
    budget = prefill_budget(curve, 1, STEP_TOKENS_MAX)
    # Others have read in all steps but those, so far as they could.
    assert len(prompt) // budget < len(bench.passes) <= (PASSED_MAX + 1) * -(-len(prompt) // budget)
    assert num_short > PASSED_MAX
    bench.run()
    assert long.token_ids == alone(prompt, 2)


async def test_prompts_are_read_by_deadline_and_then_by_arrival() -> None:
    bench = Bench(engine_of(max_sessions=8), curve=FixedCurve(1.0, 0.1))
    decoding(bench, 2, 100)
    first = bench.open("first", random_line(40, seed=6), 2)
    second = bench.open("second", random_line(40, seed=7), 2)
    urgent = bench.open("urgent", random_line(40, seed=8), 2, time_left_ms=60_000)
    order: list[Session] = []
    readers = [first, second, urgent]

    def is_done() -> bool:
        order.extend(session for session in readers if session.verdicts and session not in order)
        return len(order) == 3

    bench.run(until=is_done)
    assert order == [urgent, first, second]


async def test_a_prompt_without_a_deadline_is_read_although_urgent_ones_keep_coming() -> None:
    bench = Bench(engine_of(max_sessions=4), curve=FixedCurve(0.0, 1.0))
    decoding(bench, 1, 120)
    patient = bench.open("patient", random_line(12, seed=6), 2)
    num_urgent = 0

    def is_read() -> bool:
        nonlocal num_urgent
        if len(bench.admission.seated) < 4 and num_urgent < 60:
            num_urgent += 1
            bench.open(f"urgent {num_urgent}", random_line(16, seed=100 + num_urgent), 1, time_left_ms=1000)
        return bool(patient.verdicts)

    bench.run(until=is_read)
    assert 4 < num_urgent < 30


async def test_drafts_at_hand_are_scored_with_the_end_of_the_prompt() -> None:
    tokens = alone(LONG, 6)
    bench = Bench(engine_of(), curve=FixedCurve(1.0, 0.01))
    decoding(bench, 1, 60)
    reader = bench.open("reader", LONG, 6)
    bench.graft(reader, DraftWindow(len(LONG) - 1, 1, [0, 1], tokens[:2], [-0.01, -0.01]))
    bench.verifier.end_drafts(reader.verification)
    bench.run(until=lambda: bool(reader.verdicts))
    assert reader.verdicts[0].token_ids == tokens[:3]
    # While it was read, no place was kept for them.
    *chunks, last = bench.jobs
    assert len(chunks) >= 1
    assert all(not job.token_ids for jobs in chunks for job in jobs)
    assert [len(job.token_ids) for job in last] == [0, 2]


async def test_prompts_that_begin_alike_are_read_once() -> None:
    bench = Bench(engine_of(), curve=FixedCurve(1.0, 0.1))
    sessions = [bench.open(str(number), LONG, 5) for number in range(3)]
    bench.run()
    assert sum(sum(fed) for fed in bench.passes) < len(LONG) + 2 * 16 + 3 * 5
    assert [session.token_ids for session in sessions] == [alone(LONG, 5)] * 3
    assert sorted(session.verdicts[0].num_cached_tokens for session in sessions) == [0, 112, 112]


async def test_a_busy_device_scores_roots_alone() -> None:
    """A step takes in proportion to its tokens, so the surest guess brings no more than it costs."""
    bench = Bench(engine_of(), curve=FixedCurve(0.0, 1.0))
    sessions = decoding(bench, 3, 12)
    for session in sessions:
        line = bench.line_of(session)
        bench.graft(session, DraftWindow(len(line) - 1, 1, [0, 1], [5, 6], [-0.001, -0.001]))
        bench.verifier.end_drafts(session.verification)
    bench.run()
    assert all(session.is_finished for session in sessions)
    assert all(verdict.num_draft_tokens == 0 for session in sessions for verdict in session.verdicts)


async def test_a_session_that_waits_for_drafts_is_not_left_behind() -> None:
    """Its drafts never come, though it has every reason to expect them; beside it others decode."""
    bench = Bench(engine_of(), curve=FixedCurve(0.005, 1e-5))
    _, draft_wait = bench.estimates.of(greedy=True)
    for _ in range(20):
        draft_wait.observe_places([1.0] * 10)
        draft_wait.observe_first_draft(1e-3)
        draft_wait.observe_levels(1, 1e-4)
    waiting = bench.open("waiting", random_line(6, seed=1), 30, expect_drafts=True)
    for number in range(2):
        bench.open(str(number), random_line(6, seed=2 + number), 40)
    bench.run(until=lambda: bool(waiting.verdicts))
    slot = bench.slot_of(waiting)
    bench.jobs.clear()
    bench.run(until=lambda: waiting.is_finished)
    takes_part = [any(job.slot is slot for job in jobs) for jobs in bench.jobs]
    assert takes_part[-1]
    assert all(now or then for now, then in pairwise(takes_part))


async def test_a_drafter_reads_in_chunks_too() -> None:
    drafts = Drafts(engine_of())
    drafts.estimates.curve = FixedCurve(1.0, 0.1)
    passes: list[list[int]] = []
    step = drafts.engine.step

    def noting(jobs, max_line_tokens):  # type: ignore[no-untyped-def]
        before = [len(job.slot.cached_prefix) for job in jobs]
        output = step(jobs, max_line_tokens)
        passes.append([len(job.slot.cached_prefix) - held for job, held in zip(jobs, before, strict=True)])
        return output

    drafts.engine.step = noting  # type: ignore[method-assign]
    first = drafts.open(random_line(6, seed=1), max_run_ahead=12)
    while not drafted(first):
        drafts.drafter.step()
    passes.clear()
    second = drafts.open(LONG, num_tokens=8)
    while drafts.drafter.step() is not None:
        pass
    assert drafted(second)
    chunks = [fed[1] for fed in passes if len(fed) == 2]
    assert chunks
    assert all(chunk <= prefill_budget(FixedCurve(1.0, 0.1), 1, STEP_TOKENS_MAX) for chunk in chunks)
