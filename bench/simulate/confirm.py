"""A few points of the plane on real services: forced step times and acceptance, real policies, real gRPC."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.compare.asking import CoordinatorSource
from bench.records import rounded
from bench.rivals.modes import Mode
from bench.simulate.oracle import PROMPT
from bench.simulate.synthetic import SCHEMES, Point, best_window, speculation_of
from bench.simulate.virtual import Speculation
from bench.stack.delay import DelayLine
from bench.stack.models import Models
from bench.stack.services import HOST, Pair, running
from outrider.cli.child import Child, Observer
from outrider.client import GREEDY, GenerationClient
from outrider.core.draft.session import AUTOMATIC_WIDTH_MAX
from outrider.plan.theory import best_in_turn

VERIFY_STEP_MS = 40.0
"""A forced verify step. Everything that is not forced (messages, Python, a tiny forward pass) takes about 2 ms a round,
and a draft step of a tenth of it still dwarfs the bundled draft's own pass."""

NUM_TOKENS = 160

POINTS = (
    Point(alpha=0.8, draft_step=0.35),
    Point(alpha=0.8, draft_step=0.1),
    Point(alpha=0.6, draft_step=0.2),
    Point(alpha=0.8, draft_step=0.2, delay=0.5),
)


@dataclass(frozen=True, slots=True)
class _Scheme:
    name: str
    mode: Mode
    speculation: Speculation


async def confirm(models: Models, observer: Observer, points: Sequence[Point] = POINTS) -> list[dict[str, Any]]:
    """Speed-up of every scheme over the forced verify step, on services and on the virtual clock, point by point."""
    confirmed: list[dict[str, Any]] = []
    for point in points:
        schemes = _schemes(point)
        async with contextlib.AsyncExitStack() as leaving:
            lines: list[DelayLine] = []

            async def through_delay(draft: Child, lines: list[DelayLine] = lines) -> str:
                lines.append(DelayLine(draft.address))
                return await leaving.enter_async_context(lines[-1].listening(HOST))

            stack = await leaving.enter_async_context(
                running([scheme.mode for scheme in schemes], models, observer, through=through_delay)
            )
            for line in lines:
                line.seconds = point.delay * VERIFY_STEP_MS / 1000.0
            real = {
                each.name: await _ask(point, each, stack.pair(each.mode), stack.client(each.mode)) for each in schemes
            }
        confirmed.append(
            {
                "alpha": point.alpha,
                "draft_step": point.draft_step,
                "delay": point.delay,
                "on_services": real,
                "on_virtual_clock": {each.name: _virtual(point, each) for each in schemes},
            }
        )
    return rounded(confirmed)


def _schemes(point: Point) -> list[_Scheme]:
    lookahead, window = best_in_turn(point.alpha, point.draft_step, point.delay)[0], best_window(point)
    schemes: list[_Scheme] = []
    for name in SCHEMES:
        policy, speculation = speculation_of(name, lookahead, window)
        flags = (
            f"--tree-width={speculation.tree_width}",
            f"--max-run-ahead={speculation.run_ahead}",
            f"--max-draft-tokens={speculation.max_draft_tokens}",
        )
        schemes.append(_Scheme(name, Mode(name=name, about="", coordinator=flags, policy=policy), speculation))
    return schemes


async def _ask(point: Point, scheme: _Scheme, pair: Pair, client: GenerationClient) -> float:
    """The speed-up while decoding."""
    settings = {
        "alpha": point.alpha,
        "num_positions": len(PROMPT) + NUM_TOKENS,
        "width": scheme.speculation.tree_width or AUTOMATIC_WIDTH_MAX,
        "seed": 0,
    }
    await pair.force(
        verify={**settings, "step_ms": VERIFY_STEP_MS},
        draft={**settings, "step_ms": VERIFY_STEP_MS * point.draft_step},
    )
    await pair.choose(scheme.mode)
    source = CoordinatorSource(client)
    sample = await source.ask(PROMPT, GREEDY, NUM_TOKENS)
    return VERIFY_STEP_MS / sample.decode_ms_per_token


def _virtual(point: Point, scheme: _Scheme) -> float:
    return 1.0 / point.run(scheme.speculation, scheme.mode.policy, num_tokens=NUM_TOKENS).time_per_token
