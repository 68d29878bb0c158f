"""Fleets on a virtual clock: whoever is lost, answers are the text's own; and a fleet costs what it is told to cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.simulate.fleet.completion import Completion
from bench.simulate.fleet.run import Fault, FaultAt, Fleet
from bench.simulate.fleet.scale import sizes
from bench.simulate.fleet.settings import Asked, Durations, Settings, Shape
from outrider.core.coordinate.liveness import SILENCE_SECONDS

SMALL = Settings(
    shape=Shape(num_verifiers=2, num_drafters=2, num_coordinators=2, num_clients=6),
    asked=Asked(mean_prompt_tokens=24, mean_answer_tokens=16),
    warm_up_seconds=0.5,
    seconds=1.0,
)


def ran(settings: Settings, *faults: FaultAt) -> Fleet:
    fleet = Fleet(settings)
    fleet.run(faults)
    return fleet


def is_right(completion: Completion) -> bool:
    text, line = completion.text, completion.session.line.token_ids
    first = len(text.prompt)
    return len(line) == text.length and all(
        line[position] == text.token(position) for position in range(first, text.length)
    )


@pytest.mark.parametrize("fault", ["kill", "freeze", "drain"])
@pytest.mark.parametrize("role", ["verify", "draft"])
def test_whoever_is_lost_answers_are_whole_and_the_texts_own(fault: Fault, role: str) -> None:
    settings = replace(SMALL, seconds=SILENCE_SECONDS + 1.0 if fault == "freeze" else 1.5)
    fleet = ran(settings, FaultAt(seconds=0.7, worker=f"{role}-0", fault=fault))
    running = [each for coordinator in fleet.coordinators for each in coordinator.completions.values()]
    assert len(fleet.ended) >= 12
    assert all(map(is_right, fleet.ended))
    assert len(running) == SMALL.shape.num_clients
    lost = fleet.verifiers[0] if role == "verify" else fleet.drafters[0]
    elsewhere = {
        seat.standing.worker.name
        for each in running
        for seat in (each.verifier, each.drafter)
        if seat is not None and each.asked_at > (0.7 + SILENCE_SECONDS if fault == "freeze" else 0.8)
    }
    assert lost.name not in elsewhere


def test_the_same_settings_come_to_the_same() -> None:
    assert ran(SMALL).result() == ran(SMALL).result()


def test_targets_alone_take_their_steps_and_the_way_of_a_message() -> None:
    shape = Shape(num_drafters=0, num_clients=1)
    asked = Asked(mean_prompt_tokens=1, mean_answer_tokens=10**6)
    durations = Durations(verify_ms=10.0, delay_ms=3.0, event_ms=0.0)
    fleet = ran(Settings(shape=shape, asked=asked, durations=durations, warm_up_seconds=1.0, seconds=2.0))
    assert fleet.tokens_per_second == pytest.approx(100.0, rel=0.02)  # a verifier goes on without being asked


def test_drafters_help_and_a_coordinator_that_cannot_keep_up_takes_it_away() -> None:
    def tokens_per_second(num_drafters: int, event_ms: float) -> float:
        shape = replace(SMALL.shape, num_drafters=num_drafters, num_coordinators=1)
        durations = Durations(event_ms=event_ms)
        return ran(replace(SMALL, shape=shape, durations=durations, adaptive=False)).tokens_per_second

    alone, drafted, swamped = tokens_per_second(0, 0.1), tokens_per_second(3, 0.1), tokens_per_second(3, 4.0)
    assert drafted > 1.5 * alone
    assert swamped < 0.7 * drafted


def test_sessions_beyond_the_slots_wait_for_one() -> None:
    shape = Shape(num_verifiers=2, num_drafters=1, num_clients=10, max_sessions=3)
    fleet = ran(replace(SMALL, shape=shape, seconds=2.5))
    assert max(len(each.device.scheduler.admission.seated) for each in fleet.verifiers) <= 3
    assert len(fleet.ended) >= 10
    assert all(map(is_right, fleet.ended))


def test_fleets_grow_with_their_clients_up_to_the_largest() -> None:
    shapes = [run.settings.shape for run in sizes(Settings(), 16)]
    assert {shape.num_verifiers for shape in shapes} == {1, 4, 16}
    assert {shape.num_clients / shape.num_verifiers for shape in shapes} == {16}
    assert {shape.num_coordinators for shape in shapes if shape.num_verifiers == 16 and shape.num_drafters} == {
        1,
        4,
        16,
    }
