"""Whatever the schedule, the text is the toy target's own, to the token, and the session ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from random import Random

import pytest

from outrider.core.coordinate.drafter_state import DrafterState
from outrider.core.protocol import naming, tree
from outrider.core.protocol.messages import FinishReason, TokenOrigin

from .drafters import HonestDrafter
from .scenario import Conduct, Scenario, draw_scenario
from .world import World, paths

NUM_SCHEDULES = 1000
"""`make simulate` runs as many as one likes."""


def run_schedule(seed: int, scenario: Scenario | None = None) -> World:
    """Runs one world; what goes wrong names the seed that replays it."""
    world = World(seed, scenario)
    try:
        world.run()
    except Exception as error:
        pytest.fail(f"schedule {seed} went wrong, World({seed}).run() replays it: {error!r}; {world.scenario}")
    return world


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    """Those of the first seeds, at their end."""
    return [run_schedule(seed) for seed in range(NUM_SCHEDULES)]


def test_every_schedule_gives_the_targets_own_text(worlds: list[World]) -> None:
    seen: Counter[object] = Counter()
    for world in worlds:
        seen.update((world.scenario.conduct, world.coordinator.drafter, *world.finish_reasons, *set(world.origins)))
        seen["rollback"] += world.coordinator.statistics.num_rollbacks > 0
        seen["stale"] += world.coordinator.statistics.num_stale_nodes > 0
        seen["looked up"] += world.coordinator.statistics.num_prompt_lookup_tokens > 0
        seen["accepted looked up"] += world.coordinator.statistics.num_accepted_prompt_lookup_tokens > 0
        seen["predicted"] += world.coordinator.statistics.num_prediction_tokens > 0
        seen["accepted predicted"] += world.coordinator.statistics.num_accepted_prediction_tokens > 0
    states = set(DrafterState) - {DrafterState.MISSED, DrafterState.REPLACED, DrafterState.PAUSED}  # see test_moves.py
    wanted = (*Conduct, *FinishReason, *TokenOrigin, *states)
    kinds = ("looked up", "accepted looked up", "predicted", "accepted predicted")
    rare = {what: seen[what] for what in (*wanted, "rollback", "stale", *kinds)}
    assert min(rare.values()) >= NUM_SCHEDULES // 50, f"some things hardly ever happened: {rare}"


def test_short_memories_cost_hardly_a_draft_and_never_a_token(
    worlds: list[World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with bounds so small that forgetting, which a real line needs a thousand tokens for, never stops."""

    def num_accepted_tokens(worlds: Iterable[World]) -> int:
        return sum(world.coordinator.statistics.num_accepted_tokens for world in worlds)

    num_with_long_memories = num_accepted_tokens(worlds[:500])
    monkeypatch.setattr(tree, "RECENT_COMMITS_MAX", 2)
    monkeypatch.setattr(naming, "RECENT_COMMITS_MAX", 2)
    monkeypatch.setattr(naming, "_SWEEP_NAMES_MIN", 1)
    assert num_accepted_tokens(map(run_schedule, range(500))) >= 0.98 * num_with_long_memories > 0


def test_a_line_that_outgrows_every_memory() -> None:
    scenario = replace(
        draw_scenario(Random(0)),
        max_length=4 * tree.RECENT_COMMITS_MAX,
        stop_token_ids=frozenset(),
        ignore_eos=True,
        conduct=Conduct.FAITHFUL,
        stop_string_at=None,
    )
    world = run_schedule(1, scenario)
    assert len(world.coordinator.line) == scenario.max_length


def test_a_perfect_drafter_is_always_right() -> None:
    """Not only safe but useful: with no wrong guess, every round that scores drafts accepts them all."""
    num_accepted = 0
    for seed in range(200):
        drawn = draw_scenario(Random(seed))
        scenario = replace(
            drawn,
            conduct=Conduct.FAITHFUL,
            draft=drawn.draft._replace(width=1, accuracy=1.0),
            max_run_ahead=16,
            max_draft_tokens=16,
            stop_string_at=None,
            ngrams=False,
            prediction=[],
        )
        statistics = run_schedule(seed, scenario).coordinator.statistics
        # The last round may end before its drafts do.
        assert statistics.accepted_by_round[:-1] == statistics.drafted_by_round[:-1], f"schedule {seed}"
        num_accepted += statistics.num_accepted_tokens
    assert num_accepted > 500


@pytest.mark.parametrize("conduct", [Conduct.ABSENT, Conduct.FAITHFUL])
def test_where_text_repeats_itself_what_is_looked_up_saves_rounds(conduct: Conduct) -> None:
    """With a drafter that is right half of the time, and with none at all."""

    def num_rounds(ngrams: bool) -> int:
        total = 0
        for seed in range(100):
            drawn = draw_scenario(Random(seed))
            target = drawn.target._replace(period=3)
            scenario = replace(
                drawn,
                target=target,
                draft=drawn.draft._replace(target=target, width=1, accuracy=0.5),
                max_length=len(drawn.prompt) + 48,
                max_draft_tokens=8,
                ignore_eos=True,
                stop_token_ids=frozenset(),
                conduct=conduct,
                stop_string_at=None,
                ngrams=ngrams,
                prediction=[],
            )
            total += run_schedule(seed, scenario).coordinator.statistics.num_rounds
        return total

    assert num_rounds(ngrams=True) < 0.8 * num_rounds(ngrams=False)


def test_mirrors_agree_by_content_when_everything_has_arrived() -> None:
    num_compared = 0
    for seed in range(400):
        world = World(seed, replace(draw_scenario(Random(seed)), conduct=Conduct.FAITHFUL, stop_string_at=None))
        for _ in range(seed % 97):
            if world.coordinator.finish_reason is None:
                world.step()
        world.settle()
        if world.coordinator.finish_reason is not None:
            continue
        assert isinstance(world.drafter, HonestDrafter)
        mirrors = (world.drafter.session, world.coordinator, world.verifier)
        assert len({tuple(mirror.line.token_ids) for mirror in mirrors}) == 1, f"schedule {seed}"
        drafter_paths, coordinator_paths, verifier_paths = (paths(mirror.tree) for mirror in mirrors)
        assert drafter_paths == coordinator_paths == verifier_paths, f"schedule {seed}"
        num_compared += bool(drafter_paths)
    assert num_compared > 75
