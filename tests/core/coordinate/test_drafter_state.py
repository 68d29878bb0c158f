"""The table of a drafter's states: complete, without a way back from an end, and drawn in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from outrider.core.coordinate.drafter_state import TRANSITIONS, DrafterEvent, DrafterState, diagram

PROTOCOL = Path(__file__).parents[3] / "docs" / "protocol.md"


def test_every_state_has_its_row() -> None:
    assert TRANSITIONS.keys() == set(DrafterState)


@pytest.mark.parametrize("state", DrafterState)
def test_a_drafter_that_feeds_hears_every_event_and_one_that_does_not_hears_none(state: DrafterState) -> None:
    assert TRANSITIONS[state].keys() == (set(DrafterEvent) if state.is_feeding else set())


def test_only_having_no_successor_ends_the_drafts() -> None:
    for following in TRANSITIONS.values():
        for event, after in following.items():
            assert after.is_feeding is (event is not DrafterEvent.HAS_NO_SUCCESSOR)


def test_a_loss_is_never_forgotten() -> None:
    reached = {DrafterState.REPLACED}
    for _ in DrafterState:
        reached |= {after for state in reached for after in TRANSITIONS[state].values()}
    assert reached == {DrafterState.REPLACED, DrafterState.LOST}


def test_the_documentation_shows_the_table() -> None:
    shown = f"```mermaid\n{diagram()}```\n"
    assert shown in PROTOCOL.read_text(encoding="utf-8"), f"put this into docs/protocol.md:\n{shown}"
