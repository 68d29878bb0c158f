"""A worker process: it loads and compiles its model, becomes ready, and steps until its server has drained."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import structlog

from outrider.core.protocol.errors import OutriderError
from outrider.engine import native
from outrider.engine.device_thread import DeviceThread
from outrider.engine.engine import Engine
from outrider.engine.library import CannotCompileError
from outrider.machine.leaving import leave_at_exit
from outrider.rpc.process import run_process
from outrider.rpc.serve import serve
from outrider.rpc.server import Door, Service, SetReady
from outrider.telemetry.metrics import Instruments
from outrider.worker.access import access
from outrider.worker.compilation import compile_package
from outrider.worker.config import WorkerConfig
from outrider.worker.readiness import Readiness
from outrider.worker.startup import LoadedModel, load, report

SWITCH_INTERVAL_SECONDS = 0.0005
"""How long the event loop may keep the interpreter from the device thread. Python's default of 5 ms is longer than a
whole verify step of a small model."""

T = TypeVar("T")

_log = structlog.get_logger()


class StoppedEarlyError(Exception):
    """The worker was told to stop while it loaded or compiled its model."""


class WorkerServicer(Protocol):
    """What a worker's servicer offers to its start-up."""

    def begin(self, loaded: LoadedModel, on_death: Callable[[BaseException], None]) -> DeviceThread:
        """Takes the model into use and returns the device thread, not started yet."""
        ...

    def adopt(self, engine: Engine, package: Path) -> None:
        """On the device thread: from now on `engine` runs a compiled forward pass."""
        ...

    def drain(self) -> None:
        """Ends streams that serve no session, when the server begins to stop."""
        ...


def run(
    config: WorkerConfig,
    name: str,
    add_to_server: Callable[[Any, Any], None],
    servicer: WorkerServicer,
    instruments: Instruments,
    doors: Sequence[Door] = (),
    beside: WorkerConfig | None = None,
) -> None:
    """Runs one worker process to its end; it loads another model `beside` its own if it serves by both. Exits with a
    sentence and status 1 if it cannot serve."""
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    transport, guards = access(config, instruments)
    service = Service(name, add_to_server, servicer, partial(_work, config, servicer, beside), servicer.drain)
    try:
        serving = partial(serve, config, service, transport, doors, guards, reflection=config.reflection)
        run_process(config.cores, serving)
    except StoppedEarlyError:
        _log.info("stopped before it was ready")
        leave_at_exit(0)


async def _work(
    config: WorkerConfig, servicer: WorkerServicer, beside: WorkerConfig | None, set_ready: SetReady
) -> NoReturn:
    """Loads the model and steps until it is cancelled.

    Raises OutriderError if the worker cannot go on, and StoppedEarlyError if it is cancelled before it is ready.
    """
    try:
        other = None if beside is None else await loaded_model(beside)
        loaded = replace(await loaded_model(config), beside=other)
    except asyncio.CancelledError:
        raise StoppedEarlyError from None
    loop = asyncio.get_running_loop()
    deaths: asyncio.Queue[BaseException] = asyncio.Queue(1)

    def on_death(error: BaseException) -> None:
        loop.call_soon_threadsafe(deaths.put_nowait, error)

    device = servicer.begin(loaded, on_death)
    device.start()
    readiness = Readiness(device, set_ready, config.stall_seconds)
    readiness.start()
    _log.info("ready")
    compiling = asyncio.gather(
        *(
            _adopt_later(settings, model, device, servicer)
            for settings, model in ((config, loaded), (beside, other))
            if settings is not None and model is not None
        )
    )
    try:
        death = await deaths.get()
        raise OutriderError(f"the device thread died of {type(death).__name__}; see the traceback above") from death
    finally:
        readiness.stop()
        compiling.cancel()
        await asyncio.gather(compiling, return_exceptions=True)
        device.stop()
        if loaded.ranks is not None:
            loaded.ranks.dismiss()


async def loaded_model(config: WorkerConfig) -> LoadedModel:
    """The model as it is served first. Raises UnsupportedModelError."""
    loaded = await _abandonable(partial(load, config))
    if loaded.package is not None and config.compile != "auto":
        await _compile_first(config, loaded, loaded.package)
    await _abandonable(partial(report, loaded.engine))
    return loaded


async def _compile_first(config: WorkerConfig, loaded: LoadedModel, package: Path) -> None:
    """Compiles before the worker serves. Raises CannotCompileError if that fails and the worker must not go on so."""
    try:
        await _compile(config, loaded, package)
        loaded.engine.adopt(package)
    except CannotCompileError as error:
        if config.compile == "on":
            raise
        _log.warning("not compiled", reason=str(error))


async def _adopt_later(
    config: WorkerConfig, loaded: LoadedModel, device: DeviceThread, servicer: WorkerServicer
) -> None:
    """Compiles while the worker serves, and from then on runs what was compiled."""
    if loaded.package is None or config.compile != "auto":
        return
    try:
        await _compile(config, loaded, loaded.package)
        device.submit(partial(servicer.adopt, loaded.engine, loaded.package))
    except OutriderError as error:
        _log.warning("not compiled", reason=str(error))


async def _compile(config: WorkerConfig, loaded: LoadedModel, package: Path) -> None:
    await compile_package(
        package, loaded.folder, loaded.info.dtype, loaded.info.weights, background=config.compile == "auto"
    )
    await _abandonable(partial(native.load, config.compile_cache))


async def _abandonable(call: Callable[[], T]) -> T:
    """What `call` returns, from a thread that the end of the process does not wait for."""
    result: concurrent.futures.Future[T] = concurrent.futures.Future()
    result.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return await asyncio.wrap_future(result)
