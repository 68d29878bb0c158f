"""A worker process: listen, load, serve until told to stop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import structlog

from outrider.core.protocol.errors import OutriderError
from outrider.engine import native
from outrider.engine.device_thread import DeviceThread
from outrider.rpc.process import run_process
from outrider.rpc.server import Server, Service
from outrider.worker.compilation import compile_package
from outrider.worker.config import WorkerConfig
from outrider.worker.startup import LoadedModel, load, report

SWITCH_INTERVAL_SECONDS = 0.0005
"""How long the event loop may keep the interpreter from the device thread. Python's default of 5 ms is longer than a
whole verify step of a small model."""

_log = structlog.get_logger()


class WorkerServicer(Protocol):
    """What a worker's servicer offers to its start-up."""

    def begin(self, loaded: LoadedModel, on_death: Callable[[BaseException], None]) -> DeviceThread:
        """Takes the model into use and returns the device thread, not started yet."""
        ...

    def adopt(self, package: Path) -> None:
        """On the device thread: from now on runs a compiled forward pass."""
        ...

    def drain(self) -> None:
        """Ends streams that serve no session, when the server begins to stop."""
        ...


def run(config: WorkerConfig, name: str, add_to_server: Callable[[Any, Any], None], servicer: WorkerServicer) -> None:
    """Runs one worker process to its end. Exits with a sentence and status 1 if it cannot serve."""
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    run_process(config.cores, partial(_serve, config, Service(name, add_to_server, servicer), servicer))


async def _serve(config: WorkerConfig, service: Service, servicer: WorkerServicer) -> None:
    server = Server(service)
    server.on_stop(servicer.drain)
    port = await server.start(config.listen)
    _log.info("listening", address=config.listen, port=port)
    try:
        loaded = await asyncio.to_thread(load, config)
    except Exception:
        await server.stop(None)
        raise
    if loaded.package is not None and config.compile == "on":
        await _compile(config, loaded, loaded.package)
        loaded.engine.adopt(loaded.package)
    await asyncio.to_thread(report, loaded.engine)
    loop = asyncio.get_running_loop()
    deaths: list[BaseException] = []

    def on_death(error: BaseException) -> None:
        deaths.append(error)
        loop.call_soon_threadsafe(lambda: loop.create_task(server.stop(0)))

    device = servicer.begin(loaded, on_death)
    device.start()
    server.set_ready(True)
    _log.info("ready", port=port)
    compiling = asyncio.create_task(_adopt_later(config, loaded, device, servicer))
    await server.run_until_signalled(config.drain_seconds)
    compiling.cancel()
    await asyncio.gather(compiling, return_exceptions=True)
    if deaths:
        raise OutriderError(
            f"the device thread died of {type(deaths[0]).__name__}; see the traceback above"
        ) from deaths[0]
    device.stop()


async def _adopt_later(
    config: WorkerConfig, loaded: LoadedModel, device: DeviceThread, servicer: WorkerServicer
) -> None:
    """Compiles while the worker serves, and from then on runs what was compiled."""
    if loaded.package is None or config.compile == "on":
        return
    try:
        await _compile(config, loaded, loaded.package)
        device.submit(partial(servicer.adopt, loaded.package))
    except OutriderError as error:
        _log.warning("not compiled", reason=str(error))


async def _compile(config: WorkerConfig, loaded: LoadedModel, package: Path) -> None:
    await compile_package(
        package, loaded.folder, loaded.info.dtype, config.num_threads, background=config.compile == "auto"
    )
    await asyncio.to_thread(native.load, config.compile_cache)
