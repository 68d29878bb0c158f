"""The measurement: every prompt is asked of every mode before the next prompt, in an order that keeps changing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import NamedTuple

from bench.compare.asking import Source
from bench.compare.sample import Devices, Sample
from bench.rivals.modes import COLOCATED, Mode
from bench.stack.intervals import Span, clipped, shared, total
from bench.stack.services import Pair, Stack
from outrider.client import GenerationClient, SamplingParams, ServerInfo

REST_SECONDS = 0.01
"""How often a coordinator is asked whether its workers rest: they report ten times a second at most."""

REST_SECONDS_MAX = 5.0
"""After so long the next answer is asked for all the same."""

_NS_PER_MS = 1e6


class Condition(NamedTuple):
    """Under what all modes are asked for the same."""

    temperature: float
    delay_ms: float = 0.0
    """How much longer messages between a coordinator and its workers take each way."""


class Measured(NamedTuple):
    """A sample, and what it is a sample of."""

    mode: str
    condition: Condition
    prompt: int
    """Index of the prompt; times of two modes are compared at the same one."""
    sample: Sample


class ModeSource:
    """A mode of our services: its rule is chosen, it is asked, and the workers' log of it is taken."""

    def __init__(self, source: Source, client: GenerationClient, pair: Pair, mode: Mode, delay_ms: float = 0.0) -> None:
        """`client` is one of the coordinator that the `source` asks."""
        self._source = source
        self._client = client
        self._pair = pair
        self._mode = mode
        self._delay_ms = delay_ms

    async def ask(self, prompt: Sequence[int], sampling: SamplingParams, max_tokens: int) -> Sample:
        """See `Source`."""
        await at_rest(self._client)
        await self._pair.choose(self._mode, self._delay_ms)
        await self._pair.take_log()
        started = time.monotonic_ns()
        sample = await self._source.ask(prompt, sampling, max_tokens)
        ended = started + int(sample.total_ms * _NS_PER_MS)
        used = devices(await self._pair.take_log(), started, ended)
        if self._mode.pair == COLOCATED and self._mode.policy is not None and not used.num_draft_steps:
            mode, reason = "target_only", NOTHING_DRAFTED
            sample = replace(sample, statistics={**sample.statistics, "mode": mode, "mode_reason": reason})
        return replace(sample, devices=used)


NOTHING_DRAFTED = "the one in the verifier's process took no step, and the log of that says why"
"""Why an answer had no drafter where the coordinator has none either."""


async def at_rest(client: GenerationClient) -> None:
    """Waits until a coordinator has heard that nobody is at its workers any more.

    Modes have coordinators of their own and workers in common. One that takes the session of another mode, which has
    just ended, to be still at the drafter would find a slow one too busy, and the answer would have no drafts.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REST_SECONDS_MAX):
            while not _rest(await client.server_info()):  # noqa: ASYNC110  a coordinator does not say that it has heard
                await asyncio.sleep(REST_SECONDS)


def _rest(info: ServerInfo) -> bool:
    loads = [replica.load for replica in info.replicas if replica.load is not None]
    return not any(load.num_sessions + load.num_queued for load in loads)


def devices(log: Mapping[str, Mapping[str, Sequence[Span]]], started: int, ended: int) -> Devices:
    """What the workers did between two moments, from their logs."""
    verify, draft = log["verify"], log.get("draft", {"passes": [], "steps": []})
    verify_passes = clipped(verify["passes"], started, ended)
    draft_passes = clipped(draft["passes"], started, ended)
    verify_steps = clipped(verify["steps"], started, ended)
    verify_steps_ns = total(verify_steps)
    window_ns = verify_steps[-1][1] - verify_steps[0][0] if verify_steps else 0
    return Devices(
        verify_ms=total(verify_passes) / _NS_PER_MS,
        draft_ms=total(draft_passes) / _NS_PER_MS,
        both_ms=shared(verify_passes, draft_passes) / _NS_PER_MS,
        num_verify_steps=len(verify["passes"]),
        num_draft_steps=len(draft["passes"]),
        verify_outside_ms=(verify_steps_ns - total(verify_passes)) / _NS_PER_MS,
        draft_outside_ms=(total(clipped(draft["steps"], started, ended)) - total(draft_passes)) / _NS_PER_MS,
        verify_idle_ms=(window_ns - verify_steps_ns) / _NS_PER_MS,
        edges_ms=(ended - started - window_ns) / _NS_PER_MS,
        verify_step_ms=_median_ms(verify["passes"]),
        draft_step_ms=_median_ms(draft["passes"]),
    )


def _median_ms(spans: Sequence[Span]) -> float:
    return median(last - first for first, last in spans) / _NS_PER_MS if spans else 0.0


async def measure(
    sources: Mapping[float, Mapping[str, Source]],
    prompts: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    *,
    max_tokens: int,
    num_warm_ups: int,
    on_progress: Callable[[Measured | None], None],
) -> list[Measured]:
    """Asks everything of everyone; `sources` are by delay. `on_progress` hears of each answer, and None for each that
    only warms up.

    What is compared stands next to each other in time, and the order changes from prompt to prompt, so that a machine
    whose speed drifts does so for all. Raises OutriderError.
    """
    for index in range(num_warm_ups):
        for modes in sources.values():
            for name in order(list(modes), index):
                await modes[name].ask(prompts[index % len(prompts)], sampling_of(temperatures[0], index), max_tokens)
                on_progress(None)
    measured: list[Measured] = []
    for index, prompt in enumerate(prompts):
        for temperature, (delay_ms, modes) in itertools.product(temperatures, sources.items()):
            for name in order(list(modes), index):
                sample = await modes[name].ask(prompt, sampling_of(temperature, index), max_tokens)
                measured.append(Measured(name, Condition(temperature, delay_ms), index, sample))
                on_progress(measured[-1])
    return measured


def sampling_of(temperature: float, index: int) -> SamplingParams:
    """How the answer to the prompt with that index is drawn."""
    return SamplingParams(temperature=temperature, seed=index)


def order(names: list[str], index: int) -> list[str]:
    """Rotated by one place each time, and turned around when each has been first, so that neighbours change as well."""
    num_turns, first = divmod(index, len(names))
    rotated = names[first:] + names[:first]
    return rotated[::-1] if num_turns % 2 else rotated


def sources_of(
    stack: Stack, modes: Sequence[Mode], make: Callable[[Mode], Source], delay_ms: float
) -> dict[str, Source]:
    """Something to ask for each mode of our services; `make` asks its coordinator."""
    return {
        mode.name: ModeSource(make(mode), stack.client(mode, delay_ms), stack.pair(mode), mode, delay_ms)
        for mode in modes
        if not mode.external
    }
