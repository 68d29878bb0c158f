"""The table of a drafter's states: complete, without a way back from an end, and drawn in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from outrider.core.coordinate.drafter_state import TRANSITIONS, DrafterEvent, DrafterState, diagram

PROTOCOL = Path(__file__).parents[3] / "docs" / "protocol.md"


def test_every_state_has_its_row() -> None:
    assert TRANSITIONS.keys() == set(DrafterState)


@pytest.mark.parametrize("state", DrafterState)
def test_a_drafter_that_feeds_hears_every_event_but_the_one_that_ends_a_pause(state: DrafterState) -> None:
    in_a_pause = {DrafterEvent.RESUMES}
    hears = set(DrafterEvent) - in_a_pause if state.is_feeding else set()
    assert TRANSITIONS[state].keys() == (in_a_pause if state is DrafterState.PAUSED else hears)


def test_only_a_pause_or_having_no_successor_ends_the_drafts() -> None:
    for following in TRANSITIONS.values():
        for event, after in following.items():
            assert after.is_feeding is (event not in (DrafterEvent.HAS_NO_SUCCESSOR, DrafterEvent.PAUSES))


def test_a_loss_is_never_forgotten() -> None:
    reached = {DrafterState.REPLACED}
    for _ in DrafterState:
        reached |= {after for state in reached for after in TRANSITIONS[state].values()}
    assert reached == {DrafterState.REPLACED, DrafterState.LOST, DrafterState.PAUSED}


def test_the_documentation_shows_the_table() -> None:
    shown = f"```mermaid\n{diagram()}```\n"
    assert shown in PROTOCOL.read_text(encoding="utf-8"), f"put this into docs/protocol.md:\n{shown}"
