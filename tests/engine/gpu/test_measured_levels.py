"""What `outrider bench gpu` measures of levels of a draft in graphs, but for the time: they run in the interpreter."""

from __future__ import annotations

import pytest

from bench.gpu.floor import Reach, Reads, Row, floor_ms
from bench.gpu.levels import NUM_LEVELS, level_of
from bench.gpu.result import row_name
from bench.gpu.rounds import Rounds, forced, propose
from bench.gpu.run import levels
from tests.bench.test_gpu import PlayedClock
from tests.engine.gpu.launches import Launches
from tests.engine.gpu.test_device_levels import engine_of

REACH, READS = Reach(gb_per_s=1.0, tflops=1.0), Reads(weight_bytes=4000, num_weights=1000, kv_bytes_per_token=128)


@pytest.mark.usefixtures("willing_to_choose")
def test_a_run_of_levels_is_measured_beside_as_many_steps(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.gpu.run.NUM_WARM_UPS", 0)
    engine = engine_of(at_once=True)
    rounds = Rounds(engine, propose, forced(0.0, 1), PlayedClock(1.5))
    row = level_of(Row(2, 1, 40))
    assert row == Row(2, 8, 40)
    (found,) = levels(rounds, row, READS, REACH, num_rounds=1)
    assert (found.path, found.num_levels, found.step_ms) == ("graph+levels", NUM_LEVELS, 1.5)
    assert found.floor_ms == NUM_LEVELS * floor_ms(READS, row, REACH)
    assert row_name(found.role, found.row, found.num_levels) == "draft 2 x 8, 40, 4 levels"
    launches.log.clear()
    assert rounds.levels(row) == 1.5  # what the run before has drafted has fallen away
    assert launches.num["advance"] == NUM_LEVELS + 1
    assert rounds.forward(Row(2, 4, 40)).shape[0] == 8
    assert rounds.path == "graph+choice"


def test_a_level_has_as_many_rows_as_a_drafters() -> None:
    assert [level_of(Row(number, 1, 9)).num_tokens for number in (1, 3, 16, 64)] == [16, 5, 1, 1]
