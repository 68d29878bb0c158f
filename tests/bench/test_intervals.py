"""Overlap from logs of spans."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.compare.measuring import devices
from bench.stack.intervals import clipped, shared, total

SPANS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda pair: (min(pair), max(pair))), max_size=12
)


@given(SPANS, SPANS)
def test_spans_agree_with_counting_every_moment(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    start, end = 5, 50

    def moments(spans: list[tuple[int, int]]) -> set[int]:
        return {moment for first, last in spans for moment in range(first, last) if start <= moment < end}

    mine, theirs = clipped(left, start, end), clipped(right, start, end)
    assert total(mine) == len(moments(left))
    assert shared(mine, theirs) == shared(theirs, mine) == len(moments(left) & moments(right))


def test_devices_of_an_answer() -> None:
    ms = 1_000_000
    log = {
        "verify": {
            "passes": [(10 * ms, 20 * ms), (30 * ms, 40 * ms)],
            "steps": [(9 * ms, 22 * ms), (29 * ms, 41 * ms)],
        },
        "draft": {
            "passes": [(15 * ms, 25 * ms), (35 * ms, 37 * ms)],
            "steps": [(14 * ms, 26 * ms), (35 * ms, 37 * ms)],
        },
    }
    found = devices(log, 0, 50 * ms)
    assert (found.verify_ms, found.draft_ms, found.both_ms) == (20.0, 12.0, 7.0)
    assert (found.verify_outside_ms, found.draft_outside_ms) == (5.0, 2.0)
    assert (found.verify_idle_ms, found.edges_ms) == (7.0, 18.0)
    assert (found.num_verify_steps, found.num_draft_steps) == (2, 2)
    # What follows one another adds up to the answer's time.
    assert found.verify_ms + found.verify_outside_ms + found.verify_idle_ms + found.edges_ms == 50.0
