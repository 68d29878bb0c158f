"""The three services inside the test's own process: real models, real servers, real channels on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import sys
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel

from coordinator.config import CoordinatorConfig
from coordinator.resolution import Resolve, resolve
from coordinator.service import GenerationService
from coordinator.servicer import GenerationServicer
from coordinator.workers import Workers
from draft_service.config import DraftConfig
from draft_service.model_servicer import ModelDraftServicer
from outrider.client import NO_RETRY, GenerationClient
from outrider.core.estimate.context_cost import ContextTime
from outrider.core.protocol.messages import ModelInfo
from outrider.engine.device_thread import DeviceThread
from outrider.engine.engine import Engine
from outrider.rpc.server import Server, Service
from outrider.rpc.transport import PLAINTEXT
from outrider.rpc.worker_client import WorkerClient
from outrider.telemetry.setup import Telemetry, set_up
from outrider.v1.draft_pb2_grpc import add_DraftServiceServicer_to_server
from outrider.v1.generation_pb2_grpc import add_GenerationServiceServicer_to_server
from outrider.v1.verify_pb2_grpc import add_VerifyServiceServicer_to_server
from outrider.worker.config import WorkerConfig
from outrider.worker.serving import WorkerServicer
from outrider.worker.startup import LoadedModel, load
from outrider.worker.step_runner import StepRunner
from tests.engine.graphs_made_once import graph_made_once
from verify_service.config import VerifyConfig
from verify_service.servicer import VerifyServicer

SILENT = set_up("test", environ={})

MODELS = Path(__file__).parents[2] / "models"


@dataclass(frozen=True, slots=True)
class RunningWorker:
    """A worker's server in this process."""

    address: str
    loaded: LoadedModel
    device: DeviceThread
    server: Server
    servicer: WorkerServicer

    async def all_slots_free(self) -> None:
        """Returns when no session holds a slot; runs into the test's timeout if one stays."""
        loop = asyncio.get_running_loop()
        while self.loaded.engine.num_free_slots < self.loaded.engine.max_sessions:
            turned = asyncio.Event()
            self.device.submit(lambda turned=turned: loop.call_soon_threadsafe(turned.set))
            await turned.wait()


@dataclass(frozen=True, slots=True)
class Stack:
    """A running coordinator with its workers and a client."""

    client: GenerationClient
    address: str
    service: GenerationService
    workers: Workers
    workers_changed: asyncio.Condition

    async def until(self, holds: Callable[[Workers], bool]) -> None:
        """Returns when what the coordinator knows of its workers satisfies `holds`."""
        async with self.workers_changed:
            await self.workers_changed.wait_for(lambda: holds(self.workers))

    def serving(self) -> set[str]:
        """Addresses of the workers that get sessions."""
        return {replica.address for replica, refusal in self.workers if refusal is None}

    async def until_serving(self, *addresses: str) -> None:
        """Returns when it is these workers that get sessions."""
        await self.until(lambda _: self.serving() == set(addresses))


@cache
def bundled(name: str, dtype: str = "float32") -> LoadedModel:
    """One of the bundled models, loaded once per process; a worker that begins with it takes it over while it runs."""
    config = VerifyConfig if name == "target" else DraftConfig
    return _load(config(model=str(MODELS / name), dtype=dtype, max_context=1024, num_threads=1, compile="off"))


def _load(config: WorkerConfig) -> LoadedModel:
    """Loads a model as a worker does, but for its graph: engines of one model have it in common."""
    files = [*Path(config.model).glob("config.json"), *Path(config.model).glob("*.safetensors")]
    content = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    with graph_made_once((config.dtype, config.weights, config.drafts, *content)):
        return load(config)


def save_tiny(model: PreTrainedModel, folder: Path) -> Path:
    """Saves a tiny model with a tokenizer that writes token i as the i-th printable character."""
    model.save_pretrained(folder)
    vocabulary = {chr(48 + token_id): token_id for token_id in range(model.config.get_text_config().vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


def load_tiny(folder: Path, **settings: Any) -> LoadedModel:
    """Loads a folder of `save_tiny` as a worker would, or takes up what a worker that ended has left of one that holds
    the same."""
    files = [(file.name, hashlib.sha256(file.read_bytes()).digest()) for file in folder.glob("*")]
    key = repr((folder.name, sorted(files), sorted(settings.items())))
    for loaded in _at_rest:
        if _made[loaded.engine][0] == key:
            _at_rest.remove(loaded)
            info = loaded.info._replace(instance_id=uuid.uuid4().hex)
            _made[loaded.engine] = key, info
            return replace(loaded, info=info, folder=folder)
    always = {"model": str(folder), "listen": "127.0.0.1:0", "num_threads": 1, "compile": "off"}
    loaded = _load(WorkerConfig(**{**always, **settings}))
    _made[loaded.engine] = key, loaded.info
    return loaded


_AT_REST_MAX = 8
"""More engines than the tests of one file have workers at a time."""

_at_rest: deque[LoadedModel] = deque(maxlen=_AT_REST_MAX)
_made: WeakKeyDictionary[Engine, tuple[str, ModelInfo]] = WeakKeyDictionary()
"""Engines of `load_tiny`: from what, and what is said of them."""


def _put_to_rest(loaded: LoadedModel) -> None:
    """The model of a worker that has ended is as good as new, unless somebody has put a hand to its engine."""
    engine = loaded.engine
    if engine not in _made or _made[engine][1] != loaded.info or "step" in vars(engine):
        return
    if engine.num_free_slots < engine.max_sessions:
        return
    blocks = engine.blocks
    blocks.release([blocks.take() for _ in range(blocks.num_available)])  # nothing is cached any more
    blocks.num_tokens_asked = blocks.num_tokens_found = 0
    _at_rest.append(replace(loaded, beside=None))


class Runner(StepRunner):
    """Times the steps of an engine once, whatever workers begin with it, unless somebody has put a hand to it."""

    def step_times(self) -> tuple[list[tuple[int, float]], list[ContextTime]]:
        """See `StepRunner.step_times`."""
        if "step" in vars(self.engine):
            return super().step_times()
        if self.engine not in _step_times:
            _step_times[self.engine] = super().step_times()
        return _step_times[self.engine]


_step_times: WeakKeyDictionary[Engine, tuple[list[tuple[int, float]], list[ContextTime]]] = WeakKeyDictionary()


def free_address() -> str:
    """Where nobody listens at present."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@asynccontextmanager
async def worker(
    loaded: LoadedModel,
    *,
    draft: bool = False,
    telemetry: Telemetry = SILENT,
    listen: str = "127.0.0.1:0",
    max_queue: int = 0,
    recent_answers: Literal["tenants", "all", "off"] = "tenants",
) -> AsyncIterator[RunningWorker]:
    """Serves a loaded model as a verify worker, or as a draft worker. `max_queue` and `recent_answers` are the
    verifier's."""
    servicer: WorkerServicer = (
        ModelDraftServicer(telemetry, runner=Runner)
        if draft
        else VerifyServicer(
            VerifyConfig(model="target", max_queue=max_queue, recent_answers=recent_answers), telemetry, runner=Runner
        )
    )
    name = "outrider.v1.DraftService" if draft else "outrider.v1.VerifyService"
    add = add_DraftServiceServicer_to_server if draft else add_VerifyServiceServicer_to_server
    server = Server(Service(name, add, servicer, on_stop=servicer.drain))
    port = await server.start(listen)
    deaths: list[BaseException] = []
    device = servicer.begin(loaded, deaths.append)
    device.start()
    server.set_ready(True)
    try:
        yield RunningWorker(f"127.0.0.1:{port}", loaded, device, server, servicer)
    finally:
        await server.stop(None)
        device.stop()
        assert not deaths
        _put_to_rest(loaded)


@asynccontextmanager
async def worker_process(
    module: str, folder: Path, *flags: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A worker in a process of its own, so that it can be killed and stopped as processes are, and its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, f"--model={folder}", "--listen=127.0.0.1:0", "--compile=off", *flags),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        port = ""
        while '"ready"' not in (line := (await process.stderr.readline()).decode()):
            assert line, "the worker ended"
            if '"port":' in line:
                port = line.split('"port": ')[1].split(",")[0].split("}")[0]
        yield process, f"127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def coordinator(
    verify: str,
    draft: str,
    *,
    telemetry: Telemetry = SILENT,
    wait_for_target: bool = True,
    resolver: Resolve = resolve,
    **settings: Any,
) -> AsyncIterator[Stack]:
    """A coordinator that has found its workers. Unless told otherwise its speculation gate stays open, and a busy
    machine's silence is no fault of a worker."""
    settings = {"listen": "127.0.0.1:0", "adaptive_speculation": False, "silence_seconds": 20.0, **settings}
    config = CoordinatorConfig(verify=verify, draft=draft, **settings)
    changed = asyncio.Condition()
    notices: set[asyncio.Task[None]] = set()

    async def notify() -> None:
        async with changed:
            changed.notify_all()

    def on_change(ready: bool) -> None:
        server.set_ready(ready)
        notices.add(asyncio.create_task(notify()))

    connect = partial(WorkerClient.connect, transport=PLAINTEXT)
    workers = Workers(
        config.verify, config.draft, telemetry.instruments, connect, resolver, silence_seconds=config.silence_seconds
    )
    service = GenerationService(config, workers, telemetry)
    servicer = GenerationServicer(
        service, unread_seconds=config.unread_seconds, max_requests_per_client=config.max_requests_per_client
    )
    server = Server(
        Service(
            "outrider.v1.GenerationService",
            add_GenerationServiceServicer_to_server,
            servicer,
            on_grace_over=service.end_all,
        )
    )
    address = f"127.0.0.1:{await server.start(config.listen)}"
    watching = asyncio.create_task(service.watch(on_change))
    try:
        async with GenerationClient(address, retry=NO_RETRY) as client:
            running = Stack(client, address, service, workers, changed)
            if wait_for_target:
                await running.until(lambda workers: workers.target is not None and workers.draft_answered)
            yield running
    finally:
        await server.stop(None)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


@asynccontextmanager
async def stack(target: LoadedModel, draft: LoadedModel | None, **settings: Any) -> AsyncIterator[Stack]:
    """All three services; without `draft` only two."""
    async with AsyncExitStack() as running:
        verify = await running.enter_async_context(worker(target))
        address = ""
        if draft is not None:
            address = (await running.enter_async_context(worker(draft, draft=True))).address
        yield await running.enter_async_context(coordinator(verify.address, address, **settings))
