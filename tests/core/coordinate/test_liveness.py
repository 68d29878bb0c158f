"""When a worker is suspicious, silent, or stands still."""

from __future__ import annotations

from outrider.core.coordinate.liveness import Liveness


def test_patience_is_ten_steps_within_bounds() -> None:
    liveness = Liveness(2.0)
    assert liveness.patience(0.03) == 0.3
    assert liveness.patience(0.001) == 0.2, "an even rhythm costs no questions"
    assert liveness.patience(60.0) == 0.5, "time for several answers"


def test_silence_counts_from_what_it_said_or_from_when_somebody_began_to_wait() -> None:
    liveness = Liveness(2.0)
    assert liveness.silence(10.0, 11.0) == 1.0
    liveness.on_event(10.5)
    assert liveness.silence(10.0, 11.0) == 0.5
    liveness.on_answer(7, 10.75)
    assert liveness.silence(10.0, 11.0) == 0.25


def test_a_worker_that_answers_and_does_not_get_on_stands_still() -> None:
    liveness = Liveness(2.0)
    liveness.on_event(10.0)
    for now in (10.5, 11.0, 11.5, 12.0):
        liveness.on_answer(7, now)
    assert liveness.standstill(9.0, 12.0) == 2.0


def test_a_long_step_gets_on() -> None:
    liveness = Liveness(2.0)
    liveness.on_event(10.0)
    for second in range(1, 60):
        liveness.on_answer(second, 10.0 + second)
    assert liveness.standstill(10.0, 69.0) == 0.0


def test_the_first_answer_proves_nothing() -> None:
    liveness = Liveness(2.0)
    liveness.on_event(10.0)
    liveness.on_answer(7, 11.0)
    assert liveness.standstill(9.0, 11.0) == 1.0
    liveness.on_event(11.5)
    liveness.on_answer(8, 12.0)
    assert liveness.standstill(9.0, 12.0) == 0.5
