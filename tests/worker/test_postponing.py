"""Lines that outgrow the memory: somebody gives way, nobody loses a token, nothing leaks."""

from __future__ import annotations

import pytest

from outrider.core.protocol.messages import DraftWindow, Opened
from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.engine import Engine
from outrider.engine.kv_cache.slots import Slot
from tests.engine.histories import random_line
from tests.worker.driven import MAX_CONTEXT, ONE_SESSION_TOKENS, Bench, Drafts, Session, alone, drafted, engine_of

SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, presence_penalty=0.3, seed=7)


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> list[Slot]:
    """The slots that had to forget, one entry each time."""
    slots: list[Slot] = []
    forget = Engine.forget

    def noting(engine: Engine, slot: Slot) -> None:
        slots.append(slot)
        forget(engine, slot)

    monkeypatch.setattr(Engine, "forget", noting)
    return slots


@pytest.mark.parametrize("sampling", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
async def test_who_gives_way_goes_on_with_the_same_tokens(forgotten: list[Slot], sampling: SamplingParams) -> None:
    """Four sessions of 20 tokens find room in 24 blocks of 16; at their end they need 32."""
    prompts = [random_line(20, seed=number) for number in range(4)]
    expected = [alone(prompt, 108, sampling) for prompt in prompts]
    bench = Bench(engine_of(max_sessions=4, kv_tokens=ONE_SESSION_TOKENS))
    sessions = [bench.open(str(number), prompt, 108, sampling=sampling) for number, prompt in enumerate(prompts)]
    bench.run(until=lambda: bool(bench.passes))
    assert all(session.is_admitted for session in sessions)
    bench.run()
    assert forgotten
    assert [session.token_ids for session in sessions] == expected
    assert all(len(session.record.of(Opened)) == 1 for session in sessions)
    assert bench.is_empty


async def test_the_last_to_come_gives_way_and_the_first_never_does(forgotten: list[Slot]) -> None:
    bench = Bench(engine_of(max_sessions=4, kv_tokens=ONE_SESSION_TOKENS))
    sessions = [bench.open(str(number), random_line(20, seed=number), 108) for number in range(4)]
    bench.run(until=lambda: bool(forgotten))
    first = bench.seat_of(sessions[0])
    assert forgotten == [bench.slot_of(sessions[-1])]
    num_verdicts = len(sessions[-1].verdicts)
    bench.run(until=lambda: sessions[0].is_finished)
    assert first.priority.num_overtaken == 0
    assert len(sessions[-1].verdicts) == num_verdicts
    bench.run()


async def test_who_has_given_way_once_comes_before_all_that_wait(forgotten: list[Slot]) -> None:
    bench = Bench(engine_of(max_sessions=5, kv_tokens=ONE_SESSION_TOKENS))
    sessions = [bench.open(str(number), random_line(20, seed=number), 108) for number in range(4)]
    bench.run(until=lambda: bool(forgotten))
    late = bench.open("late", random_line(20, seed=9), 4, time_left_ms=1)
    bench.run(until=lambda: late.is_admitted)
    seated = bench.admission.seated
    assert seated.index(bench.seat_of(sessions[3])) < seated.index(bench.seat_of(late))
    bench.run()
    assert late.is_finished
    assert bench.is_empty


async def test_a_tree_shrinks_before_anybody_gives_way(forgotten: list[Slot]) -> None:
    """Three lines of 128 cells fill 24 blocks of 16 to the last one. With trees they would not fit."""
    bench = Bench(engine_of(max_sessions=3, kv_tokens=ONE_SESSION_TOKENS))
    lines = [random_line(32, seed=number) for number in range(3)]
    expected = [alone(line, 96) for line in lines]
    sessions = [bench.open(str(number), line, 96) for number, line in enumerate(lines)]
    bench.run(until=lambda: all(session.is_admitted for session in sessions))
    blocks = bench.engine.blocks
    held = [blocks.take() for _ in range(blocks.num_available - 9)]  # what is left holds the lines up to cell 80
    for session, tokens, line in zip(sessions, expected, lines, strict=True):
        _graft_chain(bench, bench.line_of(session), tokens, len(line), session)
    bench.run(until=lambda: all(len(session.token_ids) >= 8 for session in sessions))
    blocks.release(held)
    bench.run()
    assert [session.token_ids for session in sessions] == expected
    assert not forgotten
    assert bench.is_empty


def _graft_chain(bench: Bench, line: list[int], tokens: list[int], num_prompt_tokens: int, session: Session) -> None:
    """Grafts the next forty tokens of what the session will say."""
    done = len(line) - num_prompt_tokens
    chain = tokens[done : done + 40]
    bench.graft(session, DraftWindow(len(line) - 1, 1, list(range(len(chain))), chain, [-0.01] * len(chain)))
    bench.verifier.end_drafts(session.verification)


async def test_many_sessions_through_a_small_memory_leave_nothing_behind(forgotten: list[Slot]) -> None:
    """16 sessions of many lengths, prompts with common beginnings among them, through room for three."""
    bench = Bench(engine_of(max_sessions=8, kv_tokens=ONE_SESSION_TOKENS), max_queue=16)
    requests = [
        (random_line(4 + 7 * number % 25, seed=number % 5), 70 + 37 * number % 30, SAMPLED if number % 3 else None)
        for number in range(16)
    ]
    sessions = [
        bench.open(
            str(number), prompt, num_tokens, sampling=sampling, time_left_ms=1000 * number if number % 4 else None
        )
        for number, (prompt, num_tokens, sampling) in enumerate(requests)
    ]
    bench.run()
    assert forgotten
    for session, request in zip(sessions[::7], requests[::7], strict=True):
        assert session.token_ids == alone(*request)
    assert all(
        len(session.token_ids) == num_tokens for session, (_, num_tokens, _) in zip(sessions, requests, strict=True)
    )
    assert bench.is_empty
    assert not bench.admission.seated
    assert bench.load().num_queued == 0


async def test_one_session_fits_however_long_it_gets(forgotten: list[Slot]) -> None:
    bench = Bench(engine_of(max_sessions=2, kv_tokens=ONE_SESSION_TOKENS))
    prompts = [random_line(100, seed=number) for number in range(2)]
    sessions = [bench.open(str(number), prompt, MAX_CONTEXT - 100) for number, prompt in enumerate(prompts)]
    bench.run()
    assert [session.token_ids for session in sessions] == [alone(prompt, MAX_CONTEXT - 100) for prompt in prompts]
    assert bench.is_empty


async def test_who_gives_way_may_leave(forgotten: list[Slot]) -> None:
    bench = Bench(engine_of(max_sessions=4, kv_tokens=ONE_SESSION_TOKENS))
    sessions = [bench.open(str(number), random_line(20, seed=number), 108) for number in range(4)]
    bench.run(until=lambda: bool(forgotten))
    bench.close(sessions[-1])
    bench.run()
    assert not sessions[-1].is_finished
    assert all(session.is_finished for session in sessions[:-1])
    assert bench.is_empty


async def test_a_drafter_whose_memory_is_full_drafts_on_later(forgotten: list[Slot]) -> None:
    """Four lines that grow to 104 tokens, with trees, need 28 to 32 blocks; there are 24."""
    lines = [random_line(104, seed=number) for number in range(4)]
    drafts = Drafts(engine_of(max_sessions=4, kv_tokens=ONE_SESSION_TOKENS))
    sessions = [drafts.open(line[:20], num_tokens=100) for line in lines]
    for position in range(20, 104, 12):
        for session, line in zip(sessions, lines, strict=True):
            drafts.commit(session, line[position : position + 12])
        drafts.run()
    *others, last = sessions
    assert drafts.slot_of(last) in forgotten
    assert drafts.place_of(last) not in drafts.admission.seated
    assert len(drafts.line_of(last)) == 104
    num_drafted = len(drafted(last))
    for session in others:
        drafts.drafter.close(session)
    drafts.run()
    fresh = Drafts(engine_of(max_sessions=1))
    expected = fresh.open(lines[-1], num_tokens=16)
    fresh.run()
    assert drafted(last)[num_drafted:] == drafted(expected) != []
    drafts.drafter.close(last)
    assert drafts.engine.num_free_slots == 4
    assert drafts.engine.blocks.num_available == drafts.engine.blocks.num_blocks
