"""Who is let in, who waits, who is refused; and that waiting harms nobody."""

from __future__ import annotations

from outrider.core.protocol.errors import ProtocolViolationError, SlotsExhaustedError
from outrider.core.protocol.messages import DraftWindow, Opened
from outrider.core.schedule.queue import OVERTAKEN_MAX
from tests.engine.histories import random_line
from tests.worker.driven import ONE_SESSION_TOKENS, Bench, Drafts, alone, engine_of

PROMPT = random_line(20, seed=1)


def opened(bench: Bench) -> list[str]:
    """Names of the sessions in the order of their admission."""
    return [name for name, event in bench.log if isinstance(event, Opened)]


async def test_who_waits_is_let_in_by_deadline_and_then_by_arrival() -> None:
    bench = Bench(engine_of(max_sessions=1))
    sessions = [
        bench.open(name, PROMPT, 4, time_left_ms=time_left_ms)
        for name, time_left_ms in (("a", None), ("b", None), ("late", 90_000), ("c", None), ("early", 60_000))
    ]
    bench.run()
    assert opened(bench) == ["early", "late", "a", "b", "c"]
    assert all(session.is_finished for session in sessions)
    assert bench.is_empty


async def test_it_hears_that_it_is_open_when_it_is_let_in() -> None:
    bench = Bench(engine_of(max_sessions=1))
    first, second = bench.open("first", PROMPT, 4), bench.open("second", PROMPT, 4)
    bench.run(until=lambda: len(first.verdicts) == 1)
    assert first.is_admitted
    assert not second.is_admitted
    bench.run()
    assert second.record.events[0] == Opened(len(PROMPT))
    assert second.token_ids == first.token_ids


async def test_beyond_its_bound_the_queue_refuses_and_says_what_to_do() -> None:
    bench = Bench(engine_of(max_sessions=1), max_queue=1)
    first = bench.open("first", PROMPT, 4)
    bench.run(until=lambda: bool(first.verdicts))
    second, third = bench.open("second", PROMPT, 4), bench.open("third", PROMPT, 4)
    bench.run()
    assert isinstance(third.record.error, SlotsExhaustedError)
    for words in ("1 sessions wait already", "try again later or elsewhere", "--max-sessions", "--kv-memory"):
        assert words in str(third.record.error)
    assert first.is_finished
    assert second.is_finished
    assert bench.is_empty


async def test_without_a_queue_the_first_one_too_many_is_refused() -> None:
    bench = Bench(engine_of(max_sessions=1), max_queue=0)
    first, second = bench.open("first", PROMPT, 4), bench.open("second", PROMPT, 4)
    bench.run()
    assert first.is_finished
    assert isinstance(second.record.error, SlotsExhaustedError)


async def test_who_leaves_the_queue_is_forgotten() -> None:
    bench = Bench(engine_of(max_sessions=1))
    first, second, third = (bench.open(name, PROMPT, 4) for name in ("first", "second", "third"))
    bench.run(until=lambda: bool(first.verdicts))
    bench.close(second)
    bench.close(second)
    bench.run()
    assert opened(bench) == ["first", "third"]
    assert third.is_finished
    assert bench.is_empty


async def test_drafts_that_come_while_it_waits_are_scored_when_it_is_let_in() -> None:
    tokens = alone(PROMPT, 6)
    bench = Bench(engine_of(max_sessions=1))
    bench.open("first", PROMPT, 4)
    second = bench.open("second", PROMPT, 6)
    bench.run(until=lambda: bool(bench.log))
    bench.graft(second, DraftWindow(len(PROMPT) - 1, 1, [0, 1, 2], tokens[:3], [-0.01] * 3))
    bench.verifier.end_drafts(second.verification)
    bench.run()
    assert second.verdicts[0].num_draft_tokens == 3
    assert second.verdicts[0].num_accepted == 3
    assert second.token_ids == tokens


async def test_nonsense_from_one_who_waits_ends_its_stream_alone() -> None:
    bench = Bench(engine_of(max_sessions=1))
    first, second = bench.open("first", PROMPT, 4), bench.open("second", PROMPT, 4)
    bench.run(until=lambda: bool(first.verdicts))
    bench.graft(second, DraftWindow(len(PROMPT) - 1, 1, [0], [10**6], [-0.1]))
    bench.graft(second, DraftWindow(len(PROMPT) - 1, 1, [0], [10**6], [-0.1]))
    bench.run()
    assert isinstance(second.record.error, ProtocolViolationError)
    assert first.is_finished
    assert bench.is_empty


async def test_a_session_without_a_deadline_is_overtaken_only_so_often() -> None:
    bench = Bench(engine_of(max_sessions=1))
    bench.open("running", PROMPT, 2)
    bench.run(until=lambda: bool(bench.log))
    patient = bench.open("patient", PROMPT, 2)
    for number in range(3 * OVERTAKEN_MAX):
        bench.open(f"hasty {number}", PROMPT, 2, time_left_ms=1000)
    bench.run()
    assert patient.is_finished
    assert opened(bench).index("patient") == 1 + OVERTAKEN_MAX


async def test_memory_lets_in_as_many_as_it_holds_with_room_to_grow() -> None:
    """24 blocks of 16 cells: 2 for each line, 4 for the growth of each session."""
    bench = Bench(engine_of(max_sessions=20, kv_tokens=ONE_SESSION_TOKENS))
    assert bench.engine.blocks.num_blocks == 24
    for number in range(20):
        bench.open(str(number), random_line(20, seed=number), 4)
    bench.run(until=lambda: bool(bench.passes))
    assert opened(bench) == [str(number) for number in range(4)]
    bench.run()
    assert len(opened(bench)) == 20
    assert bench.is_empty


async def test_what_is_shared_needs_room_once() -> None:
    bench = Bench(engine_of(max_sessions=20, kv_tokens=ONE_SESSION_TOKENS))
    prompt = random_line(96, seed=1)
    first = bench.open("first", prompt, 20)
    bench.run(until=lambda: bool(first.verdicts))
    second = bench.open("second", prompt, 20)
    third = bench.open("third", random_line(96, seed=2), 20)
    bench.run(until=lambda: len(first.verdicts) == 4)
    assert second.is_admitted
    assert not third.is_admitted
    bench.run()
    assert second.token_ids == first.token_ids == alone(prompt, 20)
    assert (first.verdicts[0].num_cached_tokens, second.verdicts[0].num_cached_tokens) == (0, 80)
    assert all(verdict.num_cached_tokens == 0 for verdict in second.verdicts[1:])
    assert bench.is_empty


async def test_a_drafter_refuses_at_once() -> None:
    drafts = Drafts(engine_of(max_sessions=1))
    first, second = drafts.open(PROMPT), drafts.open(PROMPT)
    assert drafts.place_of(first) in drafts.admission.seated
    assert drafts.place_of(second) is None
    assert isinstance(second.outbox.error, SlotsExhaustedError)  # type: ignore[attr-defined]
    drafts.run()
    drafts.drafter.close(first)
    third = drafts.open(PROMPT)
    assert drafts.place_of(third) in drafts.admission.seated


async def test_what_a_worker_reports_of_its_load() -> None:
    bench = Bench(engine_of(max_sessions=2, kv_tokens=ONE_SESSION_TOKENS))
    changes: list[None] = []
    bench.verifier.runner.on_change = lambda: changes.append(None)
    idle = bench.load()
    assert idle == ("me", 0, 0, 0, ONE_SESSION_TOKENS, ONE_SESSION_TOKENS, 0.0, 0, 0, 0, False)
    sessions = [bench.open(name, PROMPT, 8) for name in ("a", "b", "c")]
    assert changes
    waiting = bench.load()
    assert (waiting.num_sessions, waiting.num_queued, waiting.num_queued_tokens) == (0, 3, 60)
    bench.run(until=lambda: len(sessions[1].verdicts) == 2)
    busy = bench.load()
    assert (busy.num_sessions, busy.num_queued, busy.num_queued_tokens) == (2, 1, 20)
    assert busy.num_free_kv_tokens < busy.num_kv_tokens
    assert busy.step_ms > 0.0
    changes.clear()
    bench.run()
    done = bench.load()
    assert changes
    assert (done.num_sessions, done.num_queued, done.num_queued_tokens) == (0, 0, 0)
    assert done.num_free_kv_tokens == done.num_kv_tokens
    assert (done.num_prompt_tokens, done.num_cached_prompt_tokens) == (60, 32)
