"""The services that modes run on: pairs of workers, and a coordinator for each set of settings."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench.rivals.modes import ALL_CORES, COLOCATED, EAGER, NGRAM, TLS, Mode
from bench.stack.checkout import Checkout
from bench.stack.control import tell
from bench.stack.delay import HOST, delayed
from bench.stack.models import Models
from bench.stack.namespace import Namespace
from outrider.cli.certificates import make_certificates, tls_settings, transport_to
from outrider.cli.child import Child, Observer
from outrider.client import NO_RETRY, Credentials, GenerationClient
from outrider.rpc.channels import open_channel
from outrider.rpc.transport import Transport

ROUND_TRIPS = 100
"""Calls behind the median round trip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How services are started, whatever models they have."""

    worker_flags: tuple[str, ...] = ("--max-sessions=2",)
    """More flags of both workers."""
    verify_flags: tuple[str, ...] = ()
    """More flags of verifiers alone."""
    coordinator_flags: tuple[str, ...] = ()
    """The same of all coordinators."""
    delays_ms: tuple[float, ...] = (0.0,)
    """How much longer messages take each way between a coordinator and its workers: one of each for each delay."""
    draft_host: Namespace | None = None
    """Another host, which drafters run on; then their messages alone are late."""
    checkouts: Mapping[str, Checkout] = field(default_factory=dict[str, Checkout])
    """By pair: whose services to run as production does, rather than `worker.py`. They keep no log and take no
    policy."""


DEFAULT_SETUP = Setup()

Through = Callable[[Child], Awaitable[str]]
"""Makes another address for a draft service."""


class Pair:
    """A pair of running workers; the verifier may be alone."""

    def __init__(self, workers: Mapping[str, Child], measured: Collection[str]) -> None:
        """`workers` are its workers by kind, `measured` the kinds that can be told things; see `worker.py`."""
        self.addresses: Mapping[str, str] = {kind: child.address for kind, child in workers.items()}
        """Of its workers, by kind."""
        self._channels = {kind: open_channel(workers[kind].address, workers[kind].transport) for kind in measured}

    async def choose(self, mode: Mode, delay_ms: float = 0.0) -> None:
        """Has the sessions that open next follow the policy of `mode`, and find no prompt that was read before. What
        it learns holds for one delay."""
        for channel in self._channels.values():
            await tell(channel, "Choose", {"name": f"{mode.name} {delay_ms:g} ms", "policy": mode.policy})

    async def force(self, *, verify: Mapping[str, Any], draft: Mapping[str, Any]) -> None:
        """Has both engines do as told; see `Forcing.force`."""
        await tell(self._channels["verify"], "Force", verify)
        await tell(self._channels["draft"], "Force", draft)

    async def take_log(self) -> dict[str, dict[str, list[Any]]]:
        """What each kind of worker has logged since the last time: see `StepLog.take`."""
        return {
            kind: {name: list(map(tuple, entries)) for name, entries in log.items()}
            for channel in self._channels.values()
            for kind, log in (await tell(channel, "Take")).items()
        }

    async def round_trip_ms(self) -> float:
        """Median time of a call to the verifier that does nothing: two messages, and both ends' Python."""
        times: list[float] = []
        for _ in range(ROUND_TRIPS):
            started = time.perf_counter()
            await tell(self._channels["verify"], "Take")
            times.append((time.perf_counter() - started) * 1000.0)
        return statistics.median(times)

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels.values():
            await channel.close()


class CoordinatorKey(NamedTuple):
    """What sets coordinators apart."""

    pair: str
    flags: tuple[str, ...]
    delay_ms: float


def _key(mode: Mode, delay_ms: float) -> CoordinatorKey:
    return CoordinatorKey(mode.pair, mode.coordinator, delay_ms)


@dataclass(frozen=True, slots=True)
class Stack:
    """Everything that is up."""

    pairs: Mapping[str, Pair]
    coordinators: Mapping[CoordinatorKey, Child]
    clients: Mapping[CoordinatorKey, GenerationClient]
    services: Sequence[Child]
    """Every process."""

    def pair(self, mode: Mode) -> Pair:
        """The workers of `mode`."""
        return self.pairs[mode.pair]

    def address(self, mode: Mode, delay_ms: float = 0.0) -> str:
        """The address of the coordinator of `mode` whose messages are so late."""
        return self.coordinators[_key(mode, delay_ms)].address

    def client(self, mode: Mode, delay_ms: float = 0.0) -> GenerationClient:
        """A client of the coordinator of `mode` whose messages are so late."""
        return self.clients[_key(mode, delay_ms)]


@contextlib.asynccontextmanager
async def running(
    modes: Sequence[Mode],
    models: Models,
    observer: Observer,
    setup: Setup = DEFAULT_SETUP,
    *,
    through: Through | None = None,
) -> AsyncIterator[Stack]:
    """Starts what `modes` need, yields when all of it is ready, and stops it.

    A pair of workers that is not asked rests: it costs memory and no time. With `through` coordinators reach the
    drafters at the addresses that it gives. Raises ServiceDiedError.
    """
    ours = [mode for mode in modes if not mode.external]
    pairs: dict[str, tuple[Child, Child | None]] = {}
    coordinators: dict[CoordinatorKey, Child] = {}
    os.environ["OUTRIDER_HTTP"] = ""  # several run, for which one port is too few; older checkouts have no such flag
    # As `outrider up` has it: verifiers borrow the cores of drafters on their host, and drafters none. No flag either.
    borrowed = [] if setup.draft_host is not None else split_cores(models)[1]
    os.environ["OUTRIDER_CORES_BATCH"] = ",".join(map(str, borrowed))
    async with contextlib.AsyncExitStack() as leaving:
        certificates = Path(leaving.enter_context(tempfile.TemporaryDirectory()))
        if any(mode.pair == TLS for mode in ours):
            make_certificates(certificates)
        for name in dict.fromkeys(mode.pair for mode in ours):
            pairs[name] = _workers(name, models, setup, observer, certificates)
        workers = [child for pair in pairs.values() for child in pair if child is not None]
        leaving.push_async_callback(_stop, workers)
        for child in workers:
            await child.start()
            await child.ready()  # one after another: a compilation takes all cores, and finds what others compiled
        cores = split_cores(models)[1]  # with the drafter, as `outrider up` has it
        drafts = {name: await _draft_address(draft, through) for name, (_, draft) in pairs.items()}
        verifiers, drafters = [verify.address for verify, _ in pairs.values()], [*filter(None, drafts.values())]
        directly = {address: address for address in (*verifiers, *drafters)}
        far = setup.draft_host
        hold_back, late = (delayed, list(directly)) if far is None else (far.delayed, drafters)
        ways = {
            delay_ms: directly | (await leaving.enter_async_context(hold_back(late, delay_ms)) if delay_ms else {})
            for delay_ms in setup.delays_ms
        }
        keys = (
            _key(mode, delay_ms)
            for delay_ms in setup.delays_ms
            for mode in ours
            if not delay_ms or far is None or drafts[mode.pair]
        )
        for key in dict.fromkeys(keys):
            pair, way = key.pair, ways[key.delay_ms]
            flags = [
                f"--verify={way[pairs[pair][0].address]}",
                f"--draft={way.get(drafts[pair], '')}",
                f"--cores={','.join(map(str, cores))}",
                *setup.coordinator_flags,
                *key.flags,
            ]
            name = f"coordinator {len(coordinators) + 1}"
            coordinators[key] = _child(
                name,
                "GenerationService",
                _production(setup, pair, "coordinator"),
                [*flags, *_tls_flags(pair, certificates, "coordinator")],
                observer,
                _transport(pair, certificates, "coordinator"),
            )
        leaving.push_async_callback(_stop, list(coordinators.values()))
        for child in coordinators.values():
            await child.start()
        await asyncio.gather(*(child.ready() for child in coordinators.values()))
        running_pairs = {name: _pair(name, setup, *pair) for name, pair in pairs.items()}
        for pair in running_pairs.values():
            leaving.push_async_callback(pair.close)
        clients = {
            key: await leaving.enter_async_context(
                GenerationClient(child.address, Credentials(child.transport), retry=NO_RETRY)
            )
            for key, child in coordinators.items()
        }
        yield Stack(running_pairs, coordinators, clients, [*workers, *coordinators.values()])


async def _stop(children: Sequence[Child]) -> None:
    try:
        await asyncio.gather(*(child.stop() for child in children))
    finally:
        await asyncio.gather(*(child.kill() for child in children))


def _workers(
    name: str, models: Models, setup: Setup, observer: Observer, certificates: Path
) -> tuple[Child, Child | None]:
    verify_cores, draft_cores = split_cores(models)
    if name in (ALL_CORES, COLOCATED):
        verify_cores, draft_cores = sorted({*verify_cores, *draft_cores}), []
    flags = [f"--dtype={models.dtype}", f"--compile={'off' if name == EAGER else models.compile}", *setup.worker_flags]
    table = f"--ngram-table={models.ngram_table or ''}"

    def worker(kind: str, flags: Sequence[str], command: Sequence[str] = ()) -> Child:
        usual = _production(setup, name, _MODULES[kind]) if name in setup.checkouts else _MEASURED[kind]
        return _child(
            f"{kind} {name}".strip(),
            f"{kind.capitalize()}Service",
            command or usual,
            [*flags, *_tls_flags(name, certificates, kind)],
            observer,
            _transport(name, certificates, kind),
            setup.draft_host if kind == "draft" else None,
        )

    on_target = [f"--model={models.target}", f"--device={models.target_device}", *flags]
    on_target += _core_flags(models.target_device, verify_cores)
    on_target += [table, *setup.verify_flags]
    if name == COLOCATED:
        return worker("verify", [*on_target, f"--draft-model={models.draft}"], ("bench.stack.colocated",)), None
    verify = worker("verify", on_target)
    if name == ALL_CORES:
        return verify, None
    if name == NGRAM:
        return verify, worker("draft", ["--model=ngram", table], _production(setup, name, _MODULES["draft"]))
    on_draft = [f"--model={models.draft}", f"--device={models.draft_device}", *flags]
    on_draft += _core_flags(models.draft_device, draft_cores)
    return verify, worker("draft", on_draft)


_MODULES = {"verify": "verify_service", "draft": "draft_service"}
"""The module that is a worker."""

_MEASURED = {kind: ("bench.stack.worker", kind) for kind in _MODULES}
"""The same with a log and policies: a module, and arguments before its flags."""


def _production(setup: Setup, pair: str, module: str) -> Sequence[str]:
    checkout = setup.checkouts.get(pair)
    return (module,) if checkout is None else checkout.command(module)


def _core_flags(device: str, cores: Sequence[int]) -> list[str]:
    if not cores or device != "cpu":
        return []
    return [f"--cores={','.join(map(str, cores))}", f"--num-threads={len(cores)}"]


def _tls_flags(pair: str, certificates: Path, service: str) -> list[str]:
    settings = tls_settings(certificates, service) if pair == TLS else {}
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def _transport(pair: str, certificates: Path, service: str) -> Transport:
    return transport_to(certificates if pair == TLS else None, service)


def _child(
    name: str,
    service: str,
    command: Sequence[str],
    flags: Sequence[str],
    observer: Observer,
    transport: Transport,
    host: Namespace | None = None,
) -> Child:
    port = free_port()
    address = f"{HOST}:{port}"
    listening = [f"--listen={address}"]
    if host is not None:
        command, address = host.command(command), f"{host.address}:{port}"
        listening = [f"--listen=0.0.0.0:{port}", "--insecure"]
    return Child(
        name,
        [*command, *listening, *flags],
        address=address,
        health_service=f"outrider.v1.{service}",
        observer=observer,
        transport=transport,
    )


def _pair(name: str, setup: Setup, verify: Child, draft: Child | None) -> Pair:
    workers = {"verify": verify} if draft is None else {"verify": verify, "draft": draft}
    measured = [] if name in setup.checkouts else [kind for kind in workers if kind == "verify" or name != NGRAM]
    return Pair(workers, measured)


async def _draft_address(draft: Child | None, through: Through | None) -> str:
    if draft is None:
        return ""
    return draft.address if through is None else await through(draft)


def split_cores(models: Models) -> tuple[list[int], list[int]]:
    """Half of this process's cores for each worker that computes on the CPU, as `outrider up` does; else none."""
    if not hasattr(os, "sched_getaffinity"):
        return [], []
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    if half == 0 or models.target_device != "cpu" or models.draft_device != "cpu":
        return [], []
    return cores[:half], cores[half:]


def free_port() -> int:
    """A port that nobody listens on at present."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
