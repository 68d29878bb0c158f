"""Timed steps feed what they say they feed, below a line as long as they say, and leave nothing behind."""

from __future__ import annotations

import pytest

from outrider.engine import step_times
from outrider.engine.batch import PackedBatch
from outrider.engine.engine import Engine
from tests.engine.tiny_models import build


def measured(max_context: int, monkeypatch: pytest.MonkeyPatch, **engine: int) -> tuple[list[tuple[int, int]], Engine]:
    """Tokens and cells of each timed step, and the engine."""
    made = Engine(build("llama", layers=1), max_sessions=2, max_context=max_context, **engine)
    batches: list[tuple[int, int]] = []
    forward = made._model.forward

    def noting(batch: PackedBatch) -> object:
        [session] = batch.sessions
        batches.append((len(batch.token_ids), min(batch.limits)))
        assert session.num_cells >= len(batch.token_ids)
        return forward(batch)

    monkeypatch.setattr(made._model, "forward", noting)
    found = step_times.measure_in_context(made)
    timed = [batch for batch in batches if batch[0] <= max(step_times.TREE_SIZES)]
    steps = 1 + step_times._MEASUREMENTS
    assert [(each.num_tokens, each.num_cells) for each in found] == timed[steps - 1 :: steps]
    return [(each.num_tokens, each.num_cells) for each in found], made


def test_trees_are_timed_below_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_times, "MEASURED_CONTEXTS", (100, 900))
    found, engine = measured(1000, monkeypatch)
    assert found == [(size, cells) for cells in (100, 900) for size in step_times.TREE_SIZES]
    assert engine.num_free_slots == 2
    assert engine.blocks.num_available == engine.blocks.num_blocks


def test_lines_are_no_longer_than_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = measured(300, monkeypatch, kv_tokens=592)
    assert {cells for _, cells in found} == {256, 300}


def test_where_no_slot_is_free_nothing_is_timed() -> None:
    engine = Engine(build("llama", layers=1), max_sessions=1, max_context=64)
    engine.acquire()
    assert step_times.measure_in_context(engine) == []
