"""The three services on this machine: started together, ready together, stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import outrider
from outrider.cli.child import Child, Observer
from outrider.core.errors import OutriderError
from outrider.core.ngram import NGRAM_MODEL

HOST = "127.0.0.1"
"""Where everything listens: there is no authentication, so it stays on this machine."""

COORDINATOR_PORT = 50050
"""The coordinator's default port."""
DRAFT_PORT = 50051
"""The draft service's default port."""
VERIFY_PORT = 50052
"""The verify service's default port."""

_COMPILERS = ("g++", "clang++")

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
    """The same of the draft model, or `ngram` for none; None runs the target alone."""
    target_device: str = "cpu"
    draft_device: str = "cpu"
    dtype: str | None = None
    """None: float32 on a CPU, where it is exact and fast, else the type of the stored weights."""
    compiled: str | None = None
    """What `--compile` of the workers shall be; None: on, if a C++ compiler is found and the device is a CPU."""
    port: int = COORDINATOR_PORT
    draft_port: int = DRAFT_PORT
    verify_port: int = VERIFY_PORT
    """Port 0 takes a free one."""


def choose_models(target: str | None, draft: str | None, *, no_draft: bool) -> tuple[str, str | None]:
    """The pair to serve: the bundled one unless `target` names another, which then brings its own draft or none.

    Raises NoModelError if the bundled pair is wanted and not there.
    """
    bundled = target is None
    if target is None:
        target = str(_bundled("target"))
    if no_draft:
        return target, None
    return target, draft if draft is not None or not bundled else str(_bundled("draft"))


class Running:
    """Services that are up."""

    def __init__(self, coordinator: Child, verify: Child, draft: Child | None, observer: Observer) -> None:
        self._coordinator = coordinator
        self._verify = verify
        self._draft = draft
        self._observer = observer

    @property
    def coordinator(self) -> str:
        """Address of the coordinator, as `host:port`."""
        return self._coordinator.address

    @property
    def verify(self) -> str:
        """Address of the verify service."""
        return self._verify.address

    @property
    def draft(self) -> str | None:
        """Address of the draft service, if there is one."""
        return self._draft.address if self._draft is not None else None

    async def fail(self) -> NoReturn:
        """Waits until a service ends that cannot be missed, and raises its ServiceDiedError.

        The drafter can be missed: its end is a notice.
        """
        children = [child for child in (self._coordinator, self._verify, self._draft) if child is not None]
        while True:
            await asyncio.wait({child.end for child in children}, return_when=asyncio.FIRST_COMPLETED)
            for child in [child for child in children if child.end.done()]:
                if child is not self._draft:
                    raise child.death()
                self._observer.notice(f"{child.death()}\nThe others go on: the target decodes alone.")
                children.remove(child)


@contextlib.asynccontextmanager
async def services(options: UpOptions, observer: Observer | None = None) -> AsyncIterator[Running]:
    """Starts the services, yields when all are ready, and on leaving drains them, the coordinator first.

    A cancellation while they drain kills them. Raises PortTakenError, and ServiceDiedError if a service ends before it
    is ready.
    """
    observer = observer or Observer()
    ports = _free_ports(
        {"--port": options.port, "--draft-port": options.draft_port, "--verify-port": options.verify_port}
    )
    verify_cores, draft_cores = _cores(options)
    coordinator_address, draft_address, verify_address = (f"{HOST}:{port}" for port in ports)
    verify = Child(
        "verify",
        [
            *_worker_command("verify_service", options.target, verify_address, options.target_device, options),
            f"--cores={verify_cores}",
        ],
        address=verify_address,
        health_service="outrider.v1.VerifyService",
        observer=observer,
    )
    draft = (
        Child(
            "draft",
            [
                *_worker_command("draft_service", options.draft, draft_address, options.draft_device, options),
                f"--cores={draft_cores}",
            ],
            address=draft_address,
            health_service="outrider.v1.DraftService",
            observer=observer,
        )
        if options.draft is not None
        else None
    )
    coordinator = Child(
        "coordinator",
        [
            "coordinator",
            f"--listen={coordinator_address}",
            f"--verify={verify_address}",
            f"--draft={draft_address if draft is not None else ''}",
            f"--cores={draft_cores}",
        ],
        address=coordinator_address,
        health_service="outrider.v1.GenerationService",
        observer=observer,
    )
    workers = [verify] if draft is None else [verify, draft]
    try:
        # The coordinator last: it then finds both workers at once, and the first request has a drafter.
        await _start(workers)
        await _start([coordinator])
        yield Running(coordinator, verify, draft, observer)
    finally:
        try:
            await coordinator.stop()
            await asyncio.gather(*(worker.stop() for worker in workers))
        finally:
            await asyncio.gather(*(child.kill() for child in (coordinator, *workers)))


async def _start(children: Sequence[Child]) -> None:
    for child in children:
        await child.start()
    await asyncio.gather(*(child.ready() for child in children))


def _cores(options: UpOptions) -> tuple[str, str]:
    """Half of the cores for each worker, if both compute on the CPU: a drafter that never rests slows the verifier.

    The coordinator goes with the drafter, which is the one that can wait.
    """
    has_model = options.draft not in (None, NGRAM_MODEL)
    shared = has_model and options.draft_device == options.target_device == "cpu"
    if not shared or not hasattr(os, "sched_getaffinity"):
        return "", ""
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    if half == 0:
        return "", ""
    return ",".join(map(str, cores[:half])), ",".join(map(str, cores[half:]))


def _worker_command(module: str, model: str, address: str, device: str, options: UpOptions) -> list[str]:
    dtype = options.dtype or ("float32" if device == "cpu" else "auto")
    compiled = options.compiled or ("on" if device == "cpu" and any(map(shutil.which, _COMPILERS)) else "auto")
    flags = {"model": model, "device": device, "dtype": dtype, "compile": compiled, "listen": address}
    return [module, *(f"--{name}={value}" for name, value in flags.items())]


def _free_ports(wanted: dict[str, int]) -> list[int]:
    """The ports that the flags in `wanted` ask for, chosen where that is 0. Raises PortTakenError.

    A service would say the same of its own port, but a stranger's service that is ready there would be taken for ours.
    """
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        for flag, port in wanted.items():
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
    return ports


def _bundled(name: str) -> Path:
    folder = _BUNDLED_MODELS / name
    if not folder.is_dir():
        raise NoModelError(f"there is no bundled model in {folder}; name your own with --target FOLDER --draft FOLDER")
    return folder
