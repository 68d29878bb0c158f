"""Numbers of a session's steps, as its span tells them."""

from __future__ import annotations

from outrider.worker.ledger import STEPS_TOLD_MAX, Column, Ledger

COLUMNS = (
    Column(each="start", is_count=False),
    Column("ms", "each ms", is_count=False),
    Column("tokens", "each tokens"),
)


def test_sums_and_lists() -> None:
    ledger = Ledger(COLUMNS, "rounds")
    ledger.note(0.5, 2.5, 3)
    ledger.note(4.0, 1.25, 1)
    told = ledger.attributes()
    assert told == {
        "rounds": 2,
        "start": [0.5, 4.0],
        "ms": 3.75,
        "each ms": [2.5, 1.25],
        "tokens": 4,
        "each tokens": [3, 1],
    }
    assert isinstance(told["tokens"], int)


def test_sums_are_of_all_steps_and_lists_of_the_first() -> None:
    ledger = Ledger(COLUMNS, "rounds")
    for number in range(STEPS_TOLD_MAX + 10):
        ledger.note(number, 1.0, 1)
    told = ledger.attributes()
    assert (told["rounds"], told["tokens"]) == (STEPS_TOLD_MAX + 10, STEPS_TOLD_MAX + 10)
    assert told["start"] == [*map(float, range(STEPS_TOLD_MAX))]
    assert told["each tokens"] == [1] * STEPS_TOLD_MAX


def test_a_session_without_steps() -> None:
    assert Ledger(COLUMNS).attributes() == {"start": [], "ms": 0.0, "each ms": [], "tokens": 0, "each tokens": []}
