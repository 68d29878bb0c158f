"""The services on this machine: started together, ready together, stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import outrider
from outrider.cli.certificates import tls_settings, transport_to
from outrider.cli.child import Child, Observer
from outrider.cli.cores import available_cores, num_threads, share_cores
from outrider.cli.ports import free_addresses
from outrider.cli.take_up import taken_up
from outrider.core.propose.ngram import NGRAM_MODEL
from outrider.core.protocol.errors import OutriderError

COORDINATOR_PORT = 50050
"""The coordinator's default port."""
DRAFT_PORT = 50051
"""The draft service's default port."""
VERIFY_PORT = 50052
"""The verify service's default port."""
HTTP_PORT = 8080
"""The default port of the coordinator's HTTP interface."""

_BUNDLED_MODELS = Path(outrider.__file__).parents[1] / "models"
"""The pair that comes with a checkout."""


class NoModelError(OutriderError):
    """No model folder was given and none comes with this installation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """What to start, and where."""

    target: str
    """Folder or hub name of the target model."""
    draft: str | None
    """The same of the draft model, or `ngram` for none, or several with commas; None runs the target alone."""
    ngram_table: str = ""
    """File of n-grams for the verifiers, and for drafters without a model; empty: none."""
    num_verifiers: int = 1
    num_drafters: int = 1
    """Of each draft model."""
    num_coordinators: int = 1
    target_device: str = "cpu"
    draft_device: str = "cpu"
    dtype: str | None = None
    """None: float32 on a CPU, where it is exact and fast, else the type of the stored weights."""
    compiled: str | None = None
    """What `--compile` of the workers shall be; None leaves it to `compile_first`."""
    compile_first: bool = False
    """Whether workers on a CPU compile before they serve, where that works, or, as `auto` does, meanwhile."""
    port: int = COORDINATOR_PORT
    draft_port: int = DRAFT_PORT
    verify_port: int = VERIFY_PORT
    """Of the first service of each kind; port 0 takes a free one, and so does every other service."""
    http_port: int | None = None
    """The same of the first coordinator's HTTP interface; None: no coordinator has one."""

    tls: Path | None = None
    """Folder of `make_certificates` for all services; None: they speak plain text."""

    @property
    def drafts(self) -> Sequence[str]:
        """The draft models, each of which gets `num_drafters` services."""
        return [draft for draft in (self.draft or "").split(",") if draft]

    def num_on(self, device: str) -> int:
        """How many workers hold a model in the memory of `device`."""
        num_drafters = self.num_drafters * sum(draft != NGRAM_MODEL for draft in self.drafts)
        devices = [self.target_device] * self.num_verifiers + [self.draft_device] * num_drafters
        return sum(_numbered_device(each) == _numbered_device(device) for each in devices)

    @property
    def names(self) -> Sequence[str]:
        """What the services are called: numbered where there are several of a kind."""
        num_drafters = self.num_drafters * len(self.drafts)
        return [
            *_numbered("verify", self.num_verifiers),
            *_numbered("draft", num_drafters),
            *_numbered("coordinator", self.num_coordinators),
        ]


class Models(NamedTuple):
    """What to serve."""

    target: str
    draft: str | None
    ngram_table: str
    """See `UpOptions`."""


def choose_models(target: str | None, draft: str | None, ngram_table: str | None, *, no_draft: bool) -> Models:
    """The bundled pair and n-gram table, unless `target` names another, which then brings its own draft or none.

    Raises NoModelError if the bundled ones are wanted and not there.
    """
    if target is None:
        draft = str(_bundled("draft")) if draft is None and not no_draft else draft
        ngram_table = str(_bundled("ngrams.safetensors")) if ngram_table is None else ngram_table
        target = str(_bundled("target"))
    return Models(target, None if no_draft else draft, ngram_table or "")


class Running:
    """Services that are up."""

    def __init__(
        self, coordinators: Sequence[Child], verifiers: Sequence[Child], drafters: Sequence[Child], observer: Observer
    ) -> None:
        self._coordinators = coordinators
        self._verifiers = verifiers
        self._drafters = drafters
        self._observer = observer

    @property
    def coordinator(self) -> str:
        """Address of the first coordinator, as `host:port`."""
        return self._coordinators[0].address

    @property
    def coordinators(self) -> Sequence[str]:
        """Addresses of all coordinators."""
        return [child.address for child in self._coordinators]

    @property
    def http(self) -> str | None:
        """Address of the first coordinator's HTTP interface, if it has one."""
        return self._coordinators[0].http_address

    @property
    def verify(self) -> str:
        """Address of the first verify service."""
        return self._verifiers[0].address

    @property
    def draft(self) -> str | None:
        """Address of the first draft service, if there is one."""
        return self._drafters[0].address if self._drafters else None

    async def fail(self) -> NoReturn:
        """Waits until a service ends that cannot be missed, and raises its ServiceDiedError.

        The last coordinator and the last verifier cannot be missed. The end of any other one is a notice.
        """
        running = [*self._coordinators, *self._verifiers, *self._drafters]
        while True:
            await asyncio.wait({child.end for child in running}, return_when=asyncio.FIRST_COMPLETED)
            for child in [child for child in running if child.end.done()]:
                running.remove(child)
                needed = (self._coordinators, self._verifiers)
                if any(child in kind and not any(other in running for other in kind) for kind in needed):
                    raise child.death()
                alone = child in self._drafters and not any(other in running for other in self._drafters)
                self._observer.notice(
                    f"{child.death()}\nThe others go on{': the target decodes alone' if alone else ''}."
                )


@contextlib.asynccontextmanager
async def services(options: UpOptions, observer: Observer | None = None) -> AsyncIterator[Running]:
    """Starts the services, yields when all are ready, and on leaving drains them, the coordinators first.

    A cancellation while they drain kills them. Raises PortTakenError, ServiceDiedError if a service ends before it is
    ready, and NotTakenUpError if a coordinator cannot use workers that are.
    """
    observer = observer or Observer()
    coordinators, verifiers, drafters = _children(options, observer)
    workers = [*verifiers, *drafters]
    # Of workers with one model the first compiles it where nobody has, and the others find it compiled.
    pioneers = [verifiers[0], *drafters[:: options.num_drafters]]
    try:
        # The coordinators last: they then find all workers at once, and the first request has a drafter.
        await _start(pioneers)
        await _start([worker for worker in workers if worker not in pioneers])
        for coordinator in coordinators:
            await coordinator.start()
        await asyncio.gather(*map(taken_up, coordinators))
        yield Running(coordinators, verifiers, drafters, observer)
    finally:
        try:
            await asyncio.gather(*(coordinator.stop() for coordinator in coordinators))
            await asyncio.gather(*(worker.stop() for worker in workers))
        finally:
            await asyncio.gather(*(child.kill() for child in (*coordinators, *workers)))


def _children(options: UpOptions, observer: Observer) -> tuple[list[Child], list[Child], list[Child]]:
    """Coordinators, verifiers and drafters, none of them started. Raises PortTakenError."""
    drafts = [draft for draft in options.drafts for _ in range(options.num_drafters)]
    addresses = free_addresses(
        {
            "--port": (options.port, options.num_coordinators),
            "--http-port": (options.http_port or 0, options.num_coordinators),
            "--draft-port": (options.draft_port, len(drafts)),
            "--verify-port": (options.verify_port, options.num_verifiers),
        }
    )
    computing = [draft for draft in drafts if draft != NGRAM_MODEL and options.draft_device == "cpu"]
    cores = share_cores(
        available_cores(), options.num_verifiers if options.target_device == "cpu" else 0, len(computing)
    )
    verifier_shares, drafter_shares = iter(cores.verifiers), iter(cores.drafters)
    verifiers = [
        Child(
            name,
            [
                *_command("verify_service", verifier_settings(options), address),
                *_core_flags(next(verifier_shares, ""), divided=options.num_verifiers > 1),
            ],
            address=address,
            health_service="outrider.v1.VerifyService",
            observer=observer,
            transport=transport_to(options.tls, "verify"),
        )
        for name, address in zip(_numbered("verify", options.num_verifiers), addresses["--verify-port"], strict=True)
    ]
    drafters = [
        Child(
            name,
            [
                *_command("draft_service", drafter_settings(options, draft), address),
                *(
                    _core_flags(next(drafter_shares, ""), divided=len(computing) > 1)
                    if draft in computing
                    else _core_flags(cores.others, divided=False)
                ),
            ],
            address=address,
            health_service="outrider.v1.DraftService",
            observer=observer,
            transport=transport_to(options.tls, "draft"),
        )
        for name, draft, address in zip(_numbered("draft", len(drafts)), drafts, addresses["--draft-port"], strict=True)
    ]
    coordinators = [
        Child(
            name,
            [
                "coordinator",
                f"--listen={address}",
                f"--http={http or ''}",
                f"--verify={','.join(child.address for child in verifiers)}",
                f"--draft={','.join(child.address for child in drafters)}",
                f"--cores={cores.others}",
                *_flags(tls_settings(options.tls, "coordinator")),
            ],
            address=address,
            health_service="outrider.v1.GenerationService",
            observer=observer,
            http_address=http,
            transport=transport_to(options.tls, "coordinator"),
        )
        for name, address, http in zip(
            _numbered("coordinator", options.num_coordinators),
            addresses["--port"],
            [None if options.http_port is None else each for each in addresses["--http-port"]],
            strict=True,
        )
    ]
    return coordinators, verifiers, drafters


async def _start(children: Sequence[Child]) -> None:
    for child in children:
        await child.start()
    await asyncio.gather(*(child.ready() for child in children))


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]


def _core_flags(share: str, *, divided: bool) -> list[str]:
    """Workers that divide the cores must not each take threads for half of the machine."""
    return [f"--cores={share}", *([f"--num-threads={num_threads(share)}"] if divided and share else [])]


def verifier_settings(options: UpOptions) -> dict[str, str]:
    """What each verify service is told, beside its address and its cores."""
    settings = _worker_settings(options, options.target, options.target_device, options.ngram_table)
    return settings | tls_settings(options.tls, "verify")


def drafter_settings(options: UpOptions, draft: str) -> dict[str, str]:
    """The same of a draft service with the model `draft`."""
    ngram_table = options.ngram_table if draft == NGRAM_MODEL else ""
    return _worker_settings(options, draft, options.draft_device, ngram_table) | tls_settings(options.tls, "draft")


def _numbered_device(device: str) -> str:
    return "cuda:0" if device == "cuda" else device


def _worker_settings(options: UpOptions, model: str, device: str, ngram_table: str) -> dict[str, str]:
    on_cpu = device == "cpu"
    num_sharing = options.num_on(device)
    share = {"memory_share": f"{1 / num_sharing:.3f}"} if num_sharing > 1 else {}
    return {
        "model": model,
        "device": device,
        "dtype": ("float32" if on_cpu else "auto") if options.dtype is None else options.dtype,
        "compile": ("first" if on_cpu and options.compile_first else "auto")
        if options.compiled is None
        else options.compiled,
        "ngram_table": ngram_table,
        **share,
    }


def _command(module: str, settings: Mapping[str, str], address: str) -> list[str]:
    return [module, *_flags({**settings, "listen": address})]


def _flags(settings: Mapping[str, str]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def _bundled(name: str) -> Path:
    path = _BUNDLED_MODELS / name
    if not path.exists():
        raise NoModelError(f"there is no bundled model in {path}; name your own with --target FOLDER --draft FOLDER")
    return path
