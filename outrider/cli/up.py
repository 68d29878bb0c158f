"""The services on this machine: started together, ready together, stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import outrider
from outrider.cli.child import Child, Observer
from outrider.cli.cores import available_cores, num_threads, share_cores
from outrider.core.propose.ngram import NGRAM_MODEL
from outrider.core.protocol.errors import OutriderError

HOST = "127.0.0.1"
"""Where everything listens: there is no authentication, so it stays on this machine."""

COORDINATOR_PORT = 50050
"""The coordinator's default port."""
DRAFT_PORT = 50051
"""The draft service's default port."""
VERIFY_PORT = 50052
"""The verify service's default port."""

_BUNDLED_MODELS = Path(outrider.__file__).parents[1] / "models"
"""The pair that comes with a checkout."""


class NoModelError(OutriderError):
    """No model folder was given and none comes with this installation."""


class PortTakenError(OutriderError):
    """A service cannot listen where it should."""


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
    """What `--compile` of the workers shall be; None: first on a CPU, else auto."""
    port: int = COORDINATOR_PORT
    draft_port: int = DRAFT_PORT
    verify_port: int = VERIFY_PORT
    """Of the first service of each kind; port 0 takes a free one, and so does every other service."""

    @property
    def drafts(self) -> Sequence[str]:
        """The draft models, each of which gets `num_drafters` services."""
        return [draft for draft in (self.draft or "").split(",") if draft]

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

    A cancellation while they drain kills them. Raises PortTakenError, and ServiceDiedError if a service ends before it
    is ready.
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
        await _start(coordinators)
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
    addresses = _addresses(
        {
            "--port": (options.port, options.num_coordinators),
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
                *_worker_command("verify_service", options.target, address, options.target_device, options),
                f"--ngram-table={options.ngram_table}",
                *_core_flags(next(verifier_shares, ""), divided=options.num_verifiers > 1),
            ],
            address=address,
            health_service="outrider.v1.VerifyService",
            observer=observer,
        )
        for name, address in zip(_numbered("verify", options.num_verifiers), addresses["--verify-port"], strict=True)
    ]
    drafters = [
        Child(
            name,
            [
                *_worker_command("draft_service", draft, address, options.draft_device, options),
                f"--ngram-table={options.ngram_table if draft == NGRAM_MODEL else ''}",
                *(
                    _core_flags(next(drafter_shares, ""), divided=len(computing) > 1)
                    if draft in computing
                    else _core_flags(cores.others, divided=False)
                ),
            ],
            address=address,
            health_service="outrider.v1.DraftService",
            observer=observer,
        )
        for name, draft, address in zip(_numbered("draft", len(drafts)), drafts, addresses["--draft-port"], strict=True)
    ]
    coordinators = [
        Child(
            name,
            [
                "coordinator",
                f"--listen={address}",
                f"--verify={','.join(child.address for child in verifiers)}",
                f"--draft={','.join(child.address for child in drafters)}",
                f"--cores={cores.others}",
            ],
            address=address,
            health_service="outrider.v1.GenerationService",
            observer=observer,
        )
        for name, address in zip(_numbered("coordinator", options.num_coordinators), addresses["--port"], strict=True)
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


def _worker_command(module: str, model: str, address: str, device: str, options: UpOptions) -> list[str]:
    dtype = options.dtype or ("float32" if device == "cpu" else "auto")
    compiled = options.compiled or ("first" if device == "cpu" else "auto")
    flags = {"model": model, "device": device, "dtype": dtype, "compile": compiled, "listen": address}
    return [module, *(f"--{name}={value}" for name, value in flags.items())]


def _addresses(wanted: Mapping[str, tuple[int, int]]) -> dict[str, list[str]]:
    """For each flag the addresses of its services: the first at the port that it asks for, the rest at free ones.

    `wanted` has port and number of services; port 0 is a free one too. Raises PortTakenError. A service would say the
    same of its own port, but a stranger's service that is ready there would be taken for ours.
    """
    addresses: dict[str, list[str]] = {}
    with contextlib.ExitStack() as held:
        for flag, (first, count) in wanted.items():
            ports: list[int] = []
            for port in [first, *([0] * (count - 1))][:count]:
                probe = held.enter_context(socket.socket())
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((HOST, port))
                    probe.listen()
                except OSError as error:
                    raise PortTakenError(
                        f"cannot listen on {HOST}:{port} ({error.strerror}); stop what listens there or choose another "
                        f"port with {flag} (0 takes a free one)"
                    ) from error
                ports.append(probe.getsockname()[1])
            addresses[flag] = [f"{HOST}:{port}" for port in ports]
    return addresses


def _bundled(name: str) -> Path:
    path = _BUNDLED_MODELS / name
    if not path.exists():
        raise NoModelError(f"there is no bundled model in {path}; name your own with --target FOLDER --draft FOLDER")
    return path
