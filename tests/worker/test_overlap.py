"""A verifier whose engine overlaps: the real model, a device that is late, and texts that are those of one alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from outrider.core.estimate.overlap import Overlap
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.protocol.errors import StepFailedError
from outrider.core.protocol.messages import DraftWindow, TokenLogprobs, VerifyOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.schedule.policy import VerifyPolicy
from outrider.engine.engine import STEP_TOKENS_MAX, Engine, Ticket
from outrider.engine.jobs import Job
from outrider.engine.sample.sampler import Row, Sampler
from tests.engine.histories import random_line
from tests.engine.tiny_models import build
from tests.worker.driven import MAX_CONTEXT, ONE_SESSION_TOKENS, Bench, Session, alone, engine_of
from verify_service import verifier

WARM = SamplingParams(temperature=0.9, top_p=0.95, seed=3)
PENALIZED = SamplingParams(temperature=0.7, seed=4, frequency_penalty=0.5, repetition_penalty=1.2)
KINDS = (SamplingParams(), WARM, PENALIZED)


class InHalves(Overlap):
    """Two groups wherever there are two sessions."""

    def group_size(self, num_sessions: int, together: StepCurve, apart: StepCurve) -> int:
        return (num_sessions + 1) // 2 if num_sessions > 1 else num_sessions


class Late:
    """Something that passes when it is waited for."""

    def __init__(self, log: list[str], name: str) -> None:
        self._log, self._name = log, name

    def synchronize(self) -> None:
        self._log.append(f"collect {self._name}")


class OverlappingEngine(Engine):
    """Says that it overlaps, and notes in which order steps are launched and waited for."""

    def __init__(self, *, max_sessions: int = 4, **options: Any) -> None:
        super().__init__(build("llama", layers=1), max_sessions=max_sessions, max_context=MAX_CONTEXT, **options)
        self.order: list[str] = []
        self.fails: Callable[[Sequence[Job]], bool] = lambda jobs: False
        self._num_launched = 0

    @property
    def overlaps(self) -> bool:
        return True

    def launch(self, jobs: Sequence[Job], max_line_tokens: int = STEP_TOKENS_MAX) -> Ticket:
        if self.fails(jobs):
            for job in jobs:
                job.slot.clear()
            raise RuntimeError("no room for this pass")
        name = str(self._num_launched)
        self._num_launched += 1
        self.order.append(f"launch {name}")
        return super().launch(jobs, max_line_tokens)._replace(computed=Late(self.order, name))


class LateBench(Bench):
    """A verifier in two groups, whose choices are made when they are asked for: by then nothing may have changed."""

    engine: OverlappingEngine

    def __init__(self, engine: OverlappingEngine | None = None) -> None:
        super().__init__(engine or OverlappingEngine(), policy=VerifyPolicy(overlap=InHalves()))
        self.breaks: Callable[[Sequence[Row]], bool] = lambda rows: False
        sampler = self.verifier.runner.sampler

        def choose_late(
            logits: Tensor, rows: Sequence[Row], allowed: Any = None, best: Tensor | None = None
        ) -> Callable[[], list[int]]:
            outputs = [logits] if best is None else [logits, best]
            expected = [each.clone() for each in outputs]

            def choose() -> list[int]:
                assert all(map(torch.equal, outputs, expected)), "a later step wrote to the output of this one"
                if self.breaks(rows):
                    raise RuntimeError("no choice")
                return sampler.choose(logits, rows, allowed, best)

            return choose

        begin = sampler.begin_choice
        sampler.choose = lambda *args: begin(*args)()  # type: ignore[method-assign]
        sampler.begin_choice = choose_late  # type: ignore[method-assign]

    def opened(self, num_sessions: int, num_tokens: int = 12, kinds: Sequence[SamplingParams] = KINDS) -> list[Session]:
        return [
            self.open(f"s{number}", prompt_of(number), num_tokens + 3 * number, sampling=kinds[number % len(kinds)])
            for number in range(num_sessions)
        ]


def prompt_of(number: int) -> list[int]:
    return random_line(5 + number, seed=70 + number)


def expected(number: int, num_tokens: int = 12, kinds: Sequence[SamplingParams] = KINDS) -> list[int]:
    return alone(prompt_of(number), num_tokens + 3 * number, kinds[number % len(kinds)])


async def test_texts_are_those_of_each_alone_and_two_steps_are_in_flight() -> None:
    bench = LateBench()
    sessions = bench.opened(4)
    bench.run()
    assert [session.token_ids for session in sessions] == [expected(number) for number in range(4)]
    assert bench.is_empty
    in_flight = most = 0
    collected: list[str] = []
    for entry in bench.engine.order:
        verb, name = entry.split()
        in_flight += 1 if verb == "launch" else -1
        most = max(most, in_flight)
        if verb == "collect":
            collected.append(name)
    assert most == 2
    assert in_flight == 0
    assert collected == [str(number) for number in range(len(collected))], "in the order of the launches"
    two = sum(pair[0][0] == pair[1][0] == "l" for pair in zip(bench.engine.order, bench.engine.order[1:], strict=False))
    assert two > 0


async def test_one_session_is_launched_and_collected_in_turn() -> None:
    bench = LateBench()
    [session] = bench.opened(1)
    bench.run()
    assert session.token_ids == expected(0)
    assert bench.engine.order[:4] == ["launch 0", "collect 0", "launch 1", "collect 1"]


async def test_what_arrives_during_a_flight_is_read_before_it_is_waited_for() -> None:
    """A turn launches and comes back, so that the inbox is read while the device computes."""
    bench = LateBench()
    bench.opened(2)
    bench.run(until=lambda: len(bench.log) > 4)
    while bench.engine.order[-1].startswith("launch"):
        bench.verifier.step()
    assert bench.verifier.step() == 0.0
    assert bench.engine.order[-1].startswith("launch")
    assert bench.verifier.scheduler._in_flight


class Clock(SimpleNamespace):
    """Time that passes when it is asked for, as much on a busy machine as on another."""

    def __init__(self) -> None:
        super().__init__(time_ns=lambda: 0)
        self._milliseconds = count()

    def monotonic(self) -> float:
        return next(self._milliseconds) / 1000.0


async def test_drafts_that_come_at_any_time_change_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "time", Clock())
    bench = LateBench()
    sessions = bench.opened(4, num_tokens=20)
    texts = [expected(number, 20) for number in range(4)]
    rng = random.Random(2)
    names = dict.fromkeys(range(4), 1)
    windows: Counter[tuple[int, int]] = Counter()  # while nothing is in flight: turns pass until somebody is due

    def draft() -> bool:
        number = rng.randrange(4)
        session = sessions[number]
        line = bench.line_of(session) if session.verification in bench.verifier.scheduler.sessions else []
        windows[number, len(line)] += not bench.verifier._in_flight
        if line and (bench.verifier._in_flight or windows[number, len(line)] < 3):
            first = len(line) - len(prompt_of(number))
            guesses = texts[number][first : first + 3]
            if rng.random() < 0.3:
                guesses = [(guess + 1) % 61 for guess in guesses]
            first_id = names[number]
            names[number] += len(guesses)
            parents = [0, *range(first_id, first_id + len(guesses) - 1)][: len(guesses)]
            if guesses:
                logs = [-0.05] * len(guesses)
                bench.graft(session, DraftWindow(len(line) - 1, first_id, parents, guesses, logs, draft_ms=1.0))
        return False

    bench.run(until=draft)
    assert [session.token_ids for session in sessions] == texts
    assert sum(verdict.num_accepted for session in sessions for verdict in session.verdicts) > 10


async def test_who_leaves_in_flight_leaves_its_slot_when_the_step_is_settled() -> None:
    bench = LateBench(OverlappingEngine(max_sessions=2))
    first, second = bench.opened(2)
    bench.run(until=lambda: bool(first.verdicts) and bool(second.verdicts))
    while not (flying := in_flight(bench)):
        bench.verifier.step()
    leaving, staying = (first, second) if first.verification in flying else (second, first)
    num_verdicts = len(leaving.verdicts)
    bench.close(leaving)
    assert bench.engine.num_free_slots == 0
    third = bench.open("third", prompt_of(2), 30, sampling=PENALIZED)
    bench.run()
    assert len(leaving.verdicts) == num_verdicts
    assert staying.is_finished
    assert third.token_ids == alone(prompt_of(2), 30, PENALIZED)
    assert bench.is_empty


def in_flight(bench: LateBench) -> set[Any]:
    return {part.session.key for launched in bench.verifier._in_flight for part in launched.step.parts}


async def test_nobody_gives_way_beside_a_step_in_flight() -> None:
    """Four sessions of 20 tokens find room in 24 blocks of 16; at their end they need 32."""
    bench = LateBench(OverlappingEngine(kv_tokens=ONE_SESSION_TOKENS))
    plain = Bench(engine_of())
    sessions, others = (
        [each.open(f"s{number}", random_line(20, seed=number), 108) for number in range(4)] for each in (bench, plain)
    )
    forgotten: list[bool] = []
    forget = bench.engine.forget

    def noting(slot: Any) -> None:
        forgotten.append(bool(in_flight(bench)))
        forget(slot)

    bench.engine.forget = noting  # type: ignore[method-assign]
    bench.run()
    plain.run()
    assert [session.token_ids for session in sessions] == [session.token_ids for session in others]
    assert forgotten
    assert not any(forgotten)
    assert bench.is_empty


@pytest.mark.parametrize("at_launch", [True, False])
async def test_a_failing_step_ends_the_one_that_it_fails_for_and_no_other(at_launch: bool) -> None:
    bench = LateBench()
    sessions = bench.opened(4)
    bench.run(until=lambda: all(session.verdicts for session in sessions))
    bad = bench.slot_of(sessions[1])
    if at_launch:
        bench.engine.fails = lambda jobs: any(job.slot is bad for job in jobs)
    else:
        bench.breaks = lambda rows: any(row.slot == bad.index for row in rows)
    bench.run()
    assert isinstance(sessions[1].record.error, StepFailedError)
    for number in (0, 2, 3):
        assert sessions[number].record.error is None
        assert sessions[number].token_ids == expected(number)
    assert bench.is_empty


async def test_a_device_beyond_repair_ends_the_thread_as_ever() -> None:
    bench = LateBench()
    sessions = bench.opened(2)
    bench.run(until=lambda: all(session.verdicts for session in sessions))

    def fail(*_: object) -> Callable[[], list[int]]:
        def choose() -> list[int]:
            raise torch.AcceleratorError("an illegal memory access was encountered")

        return choose

    bench.verifier.runner.sampler.begin_choice = fail  # type: ignore[method-assign]
    with pytest.raises(torch.AcceleratorError):
        bench.run()


async def test_log_probabilities_are_those_of_the_own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are brought from the device once a step, for all of its sessions."""
    num_rows: list[int] = []
    found_by = Sampler.logprobs

    def noting(sampler: Sampler, logits: Tensor, token_ids: Sequence[int], num_top: int) -> tuple[TokenLogprobs, ...]:
        num_rows.append(len(logits))
        return found_by(sampler, logits, token_ids, num_top)

    monkeypatch.setattr(Sampler, "logprobs", noting)

    def with_logprobs(bench: Bench) -> list[list[Sequence[TokenLogprobs] | None]]:
        sessions: list[Session] = []
        num_rows.clear()
        for number in range(4):
            opening = VerifyOpen(
                session_id=f"s{number}",
                token_ids=prompt_of(number),
                num_prompt_tokens=len(prompt_of(number)),
                sampling=WARM,
                max_length=len(prompt_of(number)) + 12,
                ignore_eos=True,
                max_draft_tokens=8,
                num_logprobs=2,
            )
            session = Session(bench.log, f"s{number}", opening)
            bench.verifier.open(session.verification)
            sessions.append(session)
        bench.run()
        assert len(num_rows) <= len(bench.passes)
        assert sum(num_rows) == sum(len(session.token_ids) for session in sessions)
        return [[verdict.logprobs for verdict in session.verdicts] for session in sessions]

    together = with_logprobs(Bench(engine_of()))
    apart = with_logprobs(LateBench())
    assert all(row for session in together for row in session)
    for one, other in zip(together, apart, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert mine is not None
            assert theirs is not None
            assert [each.top_token_ids for each in mine] == [each.top_token_ids for each in theirs]
            assert [each.logprob for each in mine] == pytest.approx([each.logprob for each in theirs], abs=1e-4)


async def test_an_engine_on_a_cpu_does_not_overlap_and_takes_a_step_a_turn() -> None:
    bench = Bench(engine_of())
    assert not bench.engine.overlaps
    sessions = [bench.open(f"s{number}", prompt_of(number), 6) for number in range(3)]
    while not all(session.is_finished for session in sessions):
        num_passes = len(bench.passes)
        assert bench.verifier.step() == 0.0
        assert len(bench.passes) == num_passes + 1
        assert not bench.verifier._in_flight
    ticket = bench.engine.launch([Job(bench.engine.acquire(), [1, 2, 3])])
    assert ticket.computed is None
    assert bench.engine.collect(ticket) is ticket.output
