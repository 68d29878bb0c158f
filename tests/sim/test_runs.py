"""On a virtual clock: a drafter that drafts several levels in a row says the same in time, and wins what it saves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from outrider.core.schedule.draft_run import LEVELS_MAX

from .toys import ToyTarget
from .virtual_pair import PROMPT, VOCAB_SIZE, Circumstances, run_pair, sloped

WIDE = Circumstances(
    draft_step=sloped(0.5e-3, 0.05),
    verify_step=sloped(17e-3, 0.017),
    coverage=(0.75, 0.88, 0.92, 0.95),
    hop=0.2e-3,
    num_tokens=100,
)
"""About what the wide pair is like at temperature 0.8."""
BUNDLED = replace(WIDE, verify_step=sloped(1.5e-3, 0.05))


def with_runs(circumstances: Circumstances, **changes: float) -> Circumstances:
    return replace(circumstances, num_levels_max=LEVELS_MAX, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("pair", [WIDE, BUNDLED], ids=["wide", "bundled"])
def test_runs_commit_the_same_as_soon_as_steps(pair: Circumstances) -> None:
    outcome = run_pair(with_runs(pair))
    expected, _ = ToyTarget(pair.seed, VOCAB_SIZE).decode_alone(
        PROMPT, len(PROMPT) + pair.num_tokens, frozenset(), True
    )
    assert outcome.token_ids == expected
    assert outcome.seconds_per_token == pytest.approx(run_pair(pair).seconds_per_token, rel=0.02)


def test_what_a_run_saves_between_levels_makes_the_pair_faster() -> None:
    steps = run_pair(replace(BUNDLED, pause=0.35e-3))
    runs = run_pair(with_runs(BUNDLED, pause=0.12e-3))
    assert runs.seconds_per_token < 0.95 * steps.seconds_per_token
