"""The plane of speculation: acceptance, draft step and delay as told, schemes side by side, and what theory expects."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from bench.compare.result import FORMAT
from bench.records import rounded
from bench.rivals.modes import AMUSD_DRAFTS, PolicyName
from bench.rivals.ruled import policy_of
from bench.rivals.rules import FREE_CREDIT
from bench.simulate import theory
from bench.simulate.oracle import OracleText
from bench.simulate.virtual import Outcome, Speculation, Times, VirtualPair
from outrider.core.protocol.validation import AUTOMATIC_WIDTH_MAX
from outrider.plan.theory import best_in_turn

ALPHAS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
DRAFT_STEPS = (0.05, 0.1, 0.2, 0.35, 0.5)
"""0.35 and an acceptance of 0.8 are where AMUSD was measured by its authors."""
DELAYS = (0.0, 0.1, 0.5)
"""One way, in verify steps: the same machine, the next rack, another building."""

NUM_TOKENS = 1000
"""Tokens of each run: with independent guesses the time per token then scatters by about 3 %."""

SEEDS = (0, 1, 2)

_WINDOW_MAX = 16
"""Longest window of PEARL that is tried."""

OURS, OURS_CHAIN, SYNC, AMUSD, PEARL = "outrider", "outrider_chain", "sync", "amusd", "pearl"

SCHEMES: Mapping[str, str] = {
    OURS: "outrider, trees as the drafter sees fit",
    OURS_CHAIN: "outrider with chains",
    SYNC: "drafting and verifying in turn, with the lookahead that theory finds best",
    AMUSD: "AMUSD's rule",
    PEARL: "PEARL's rule, with the window that theory finds best",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A place on the plane, all times in verify steps."""

    alpha: float
    draft_step: float
    delay: float = 0.0
    """One way, between drafter and verifier."""
    verify_slope: float = 0.0
    """What each further token adds to a verify step."""

    def run(self, speculation: Speculation, policy: PolicyName | None, *, num_tokens: int, seed: int = 0) -> Outcome:
        """One answer of so many tokens on the virtual clock, by production's policy if none is named."""
        width = speculation.tree_width or AUTOMATIC_WIDTH_MAX
        times = Times(
            draft=lambda num_nodes: self.draft_step,
            verify=lambda num_nodes: 1.0 + self.verify_slope * num_nodes,
            delay=self.delay,
        )
        text = OracleText(self.alpha, num_tokens, width=width, seed=seed)
        return VirtualPair(text, times, speculation, policy_of(policy)).run()


def map_plane(
    alphas: Sequence[float] = ALPHAS,
    draft_steps: Sequence[float] = DRAFT_STEPS,
    delays: Sequence[float] = DELAYS,
    *,
    verify_slope: float = 0.0,
    num_tokens: int = NUM_TOKENS,
) -> dict[str, Any]:
    """Runs every scheme at every point on the virtual clock, on all cores. The result is what JSON can hold."""
    points = [
        Point(alpha=alpha, draft_step=draft_step, delay=delay, verify_slope=verify_slope)
        for alpha, draft_step, delay in itertools.product(alphas, draft_steps, delays)
    ]
    spawned = multiprocessing.get_context("spawn")  # a fork of a process that runs gRPC's threads may die at once
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawned) as pool:
        maps = list(pool.map(at_point, points, itertools.repeat(num_tokens), chunksize=4))
    return {
        "benchmark": "outrider bench synthetic",
        "format": FORMAT,
        "settings": {"num_tokens": num_tokens, "seeds": list(SEEDS), "verify_slope": verify_slope},
        "schemes": dict(SCHEMES),
        "points": rounded(maps),
    }


def at_point(point: Point, num_tokens: int) -> dict[str, Any]:
    """Time per token of every scheme at one point, in verify steps, and what theory expects of it."""
    lookahead, synchronous = best_in_turn(point.alpha, point.draft_step, point.delay)
    window = best_window(point)
    outcomes = {name: _run(name, point, lookahead, window, num_tokens) for name in SCHEMES}
    times = {name: outcome.time_per_token for name, outcome in outcomes.items()}
    return {
        "alpha": point.alpha,
        "draft_step": point.draft_step,
        "delay": point.delay,
        "lookahead": lookahead,
        "window": window,
        "time_per_token": times,
        "speed_up": {name: 1.0 / time for name, time in times.items()},
        "overlap": {name: outcome.overlap for name, outcome in outcomes.items()},
        "acceptance_length": {name: outcome.acceptance_length for name, outcome in outcomes.items()},
        "theory": {
            SYNC: synchronous,
            PEARL: theory.pearl(point.alpha, point.draft_step, window, point.delay),
            "chain_bound": theory.chain_bound(point.alpha, point.draft_step),
        },
    }


def best_window(point: Point) -> int:
    """PEARL's best window by theory."""
    return min(
        range(2, _WINDOW_MAX + 1),
        key=lambda window: theory.pearl(point.alpha, point.draft_step, window, point.delay),
    )


def speculation_of(scheme: str, lookahead: int, window: int) -> tuple[PolicyName | None, Speculation]:
    """How a scheme speculates: its policy, and the settings of its coordinator."""
    rivals = Speculation(tree_width=1, run_ahead=FREE_CREDIT, max_draft_tokens=FREE_CREDIT)
    match scheme:
        case "sync":
            return PolicyName("synchronous", lookahead), rivals
        case "amusd":
            return PolicyName("amusd", AMUSD_DRAFTS), rivals
        case "pearl":
            return PolicyName("pearl", window), rivals
        case "outrider_chain":
            return None, Speculation(tree_width=1)
        case _:
            return None, Speculation()


def _run(scheme: str, point: Point, lookahead: int, window: int, num_tokens: int) -> Outcome:
    """The mean over seeds. Every scheme meets the same guesses."""
    name, speculation = speculation_of(scheme, lookahead, window)
    outcomes = [point.run(speculation, name, num_tokens=num_tokens, seed=seed) for seed in SEEDS]
    return Outcome(*(sum(column) / len(outcomes) for column in zip(*outcomes, strict=True)))
