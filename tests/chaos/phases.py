"""The parts of a chaos run: each takes about as long as it is told to, and returns what it found and what was wrong."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from random import Random
from typing import Any, NamedTuple

from bench.load.percentiles import percentiles
from tests.sim.run import ScheduleError, run_schedules

from .campaign import LINK_FAULTS, PROCESS_FAULTS, Campaign, roll
from .crowd import crowds
from .fuzzed import fuzzed_services
from .namespace import Namespace, NoNamespaceError, namespace
from .services import ROLES, Services, two_of_each
from .streams import GrpcClient, HttpClient, Streams, jobs

NUM_STREAMS = 8

LONG_TOKENS = 160
"""Of answers that are to be disturbed: some seconds each."""

SHORT_TOKENS = 24
"""Where many answers are wanted."""

ROLLING_ANSWERS = 500
"""Fewest under a rolling restart."""

SCHEDULES_AT_A_TIME = 200
MESSAGES_AT_A_TIME = 2000

SHOWN_MAX = 50
"""Most sentences about what went wrong that a result keeps."""

SILENCES_SHOWN = 5
"""The longest ones are told with the faults around them."""

OVERTIME_SECONDS = 600.0
"""How much longer than it was told a part may take: services start, answers end."""


class Settings(NamedTuple):
    """How much, and from which seed."""

    seconds: float
    seed: int
    say: Callable[[str], None]
    clients: Sequence[type[GrpcClient | HttpClient]] = (GrpcClient, HttpClient)
    """What the streams are made of, in turns."""
    process_faults: Sequence[str] = PROCESS_FAULTS
    """Those that processes suffer in `faults`."""


class Found(NamedTuple):
    """What a part has to tell."""

    figures: dict[str, Any]
    problems: list[str]
    """Promises that were not kept; none is as it should be."""


async def simulate(settings: Settings) -> Found:
    """Simulated schedules in which every role crashes."""
    until = time.monotonic() + settings.seconds
    seen: Counter[str] = Counter()
    first = settings.seed * 10_000_000
    said = time.monotonic()
    while time.monotonic() < until:
        seeds = range(first + seen["schedules"], first + seen["schedules"] + SCHEDULES_AT_A_TIME)
        try:
            seen.update(await asyncio.to_thread(run_schedules, seeds))
        except ScheduleError as error:
            return Found(dict(seen), [str(error)])
        if time.monotonic() > said + 10.0:
            said = time.monotonic()
            settings.say(f"{seen['schedules']} schedules, {until - said:.0f} s to go")
    return Found(dict(sorted(seen.items())), [])


async def fuzz(settings: Settings) -> Found:
    """Nonsense to every RPC."""
    async with fuzzed_services(settings.seed) as services:
        fuzzer = services.fuzzer
        started = said = time.monotonic()
        problems: list[str] = []
        while not problems and time.monotonic() < started + settings.seconds:
            try:
                await services.batch(MESSAGES_AT_A_TIME)
            except (AssertionError, TimeoutError) as broken:
                problems.append(f"after {fuzzer.num_messages} messages: {broken!r}")
            if time.monotonic() > said + 10.0:
                said = time.monotonic()
                settings.say(f"{fuzzer.num_messages} messages, {started + settings.seconds - said:.0f} s to go")
        figures = {
            "num_messages": fuzzer.num_messages,
            "num_calls": fuzzer.statuses.total(),
            "messages_per_second": fuzzer.num_messages / (time.monotonic() - started),
            "statuses": dict(sorted(fuzzer.statuses.items())),
        }
    return Found(figures, problems)


async def faults(settings: Settings) -> Found:
    """Processes that die, freeze and drain at random moments."""
    return await _campaign(settings, settings.process_faults)


async def links(settings: Settings) -> Found:
    """Ways to workers that are late, slow, silent, cut, half shut and damaged; and a network that is cut in two."""
    async with AsyncExitStack() as running:
        try:
            inside = await running.enter_async_context(namespace())
        except NoNamespaceError as error:
            settings.say(f"without a network that is cut in two: {error}")
            inside = None
        return await _campaign(settings, LINK_FAULTS, ("verify", "draft"), inside)


async def rolling(settings: Settings) -> Found:
    """Every process is restarted in turn, under load."""
    async with _streamed(settings, SHORT_TOKENS) as (services, streams):
        streams.start()
        try:
            problems = await roll(services, streams, settings.seconds, ROLLING_ANSWERS, settings.say)
        finally:
            await streams.stop()
    return Found(_told(streams), [*problems, *streams.failures])


async def crowd(settings: Settings) -> Found:
    """Idle connections, calls that are cancelled, answers that are not read. `seconds` of 300 and more is all of it."""
    async with two_of_each() as services:
        told = await crowds(services, min(settings.seconds / 300.0, 1.0), settings.say)
    return Found({"crowds": [asdict(each) for each in told]}, [found for each in told for found in each.problems])


async def _campaign(
    settings: Settings, kinds: Sequence[str], roles: Sequence[str] = ROLES, inside: Namespace | None = None
) -> Found:
    async with _streamed(settings, LONG_TOKENS, inside) as (services, streams):
        campaign = Campaign(services, streams, Random(settings.seed), settings.say)
        streams.start()
        try:
            await campaign.run(settings.seconds, kinds, roles)
        finally:
            await streams.stop()
    recovered: dict[str, list[float]] = {}
    of_client: dict[str, list[float]] = {}
    for fault in campaign.faults:
        seconds = fault.recovery_seconds(streams)
        for who in (fault.role, "any"):
            recovered.setdefault(f"{who} {fault.kind}", []).append(seconds)
        for client in {each.name for each in settings.clients}:
            name = f"{fault.role} {fault.kind}, {client}"
            of_client.setdefault(name, []).append(fault.recovery_seconds(streams, client))
    figures = _told(streams) | {
        "num_faults": len(campaign.faults),
        "longest_silences": streams.longest_silences(
            SILENCES_SHOWN, [(fault.at, str(fault)) for fault in campaign.faults]
        ),
        "recovery_seconds": _summed(recovered),
        "recovery_seconds_by_client": _summed(of_client),
    }
    return Found(figures, [*campaign.problems, *streams.failures])


def _summed(recovered: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    return {
        name: {"count": len(every), **(percentiles([(each, 1) for each in every]) or {}), "all": sorted(every)}
        for name, every in sorted(recovered.items())
    }


def _told(streams: Streams) -> dict[str, Any]:
    bad = [each for each in streams.answers if each.failures]
    return {
        "num_answers": len(streams.answers),
        "num_bad_answers": len(bad),
        "bad_by_client": dict(Counter(each.client for each in bad)),
        "num_tokens": sum(len(each.history.committed) for each in streams.answers),
    }


@asynccontextmanager
async def _streamed(
    settings: Settings, max_tokens: int, inside: Namespace | None = None
) -> AsyncIterator[tuple[Services, Streams]]:
    """Two of each service, and streams that are ready to start."""
    async with two_of_each(inside=inside) as services:
        kinds = settings.clients
        clients = [kinds[number % len(kinds)](services) for number in range(NUM_STREAMS)]
        streams = Streams(clients, jobs(max_tokens))
        await streams.measure_undisturbed()
        yield services, streams


PHASES = {
    "simulate": (simulate, 0.12),
    "fuzz": (fuzz, 0.2),
    "faults": (faults, 0.4),
    "links": (links, 0.08),
    "rolling": (rolling, 0.1),
    "crowd": (crowd, 0.1),
}
"""Each part with its share of the time."""
