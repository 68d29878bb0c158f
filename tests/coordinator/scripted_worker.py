"""A worker in memory: a test says what it answers, and no network is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from outrider import PROTOCOL_VERSION
from outrider.core.protocol.messages import ModelInfo, PortableTokenizer, WorkerLoad
from outrider.rpc.worker_client import WorkerClient

MODEL = ModelInfo(
    name="target",
    model_type="llama",
    vocab_size=100,
    tokenizer_sha256="a" * 64,
    eos_token_ids=(2,),
    max_context=512,
    max_sessions=4,
    num_parameters=1000,
    dtype="float32",
    device="cpu",
    protocol_version=PROTOCOL_VERSION,
    instance_id="first",
)


def load(num_sessions: int = 0, step_ms: float = 10.0) -> WorkerLoad:
    return WorkerLoad("first", num_sessions, 0, 0, 10_000, 10_000, step_ms)


class ScriptedWorker(WorkerClient):
    """Answers what was put into its queues, and each time waits until the replica has taken it in."""

    def __init__(self) -> None:
        self.channel: Any = None
        self.connected = True
        self.tokenizer: bytes | Exception = b""
        self.is_closed = False
        self.answer: WorkerLoad | None = load()
        """To `ask_load`; None: it does not answer."""
        self.num_asked = 0
        self._models: asyncio.Queue[ModelInfo | Exception | None] = asyncio.Queue()
        self._loads: asyncio.Queue[WorkerLoad] = asyncio.Queue()
        self._reconnected = asyncio.Event()

    @property
    def is_connected(self) -> bool:
        return self.connected

    async def serve(self, model: ModelInfo = MODEL) -> None:
        """The worker begins to serve."""
        await self._say(model)

    async def cease(self) -> None:
        """The worker ceases to serve."""
        await self._say(None)

    async def fail(self, error: Exception) -> None:
        """What answers is no worker."""
        await self._say(error)

    async def report(self, report: WorkerLoad) -> None:
        self._loads.put_nowait(report)
        await settled()

    async def reconnect(self) -> None:
        self._reconnected.set()
        await settled()

    async def watch_model(self) -> AsyncIterator[ModelInfo | None]:
        while True:
            answer = await self._models.get()
            if isinstance(answer, Exception):
                raise answer
            yield answer

    async def watch_load(self) -> AsyncGenerator[WorkerLoad]:
        while True:
            yield await self._loads.get()

    async def ask_load(self) -> WorkerLoad:
        self.num_asked += 1
        if self.answer is None:
            await asyncio.Event().wait()
        assert self.answer is not None
        return self.answer

    async def until_reconnected(self) -> None:
        await self._reconnected.wait()
        self._reconnected.clear()

    async def fetch_tokenizer(self) -> PortableTokenizer:
        if isinstance(self.tokenizer, Exception):
            raise self.tokenizer
        return PortableTokenizer(self.tokenizer, {"default": "{{ bos_token }}"}, {"bos_token": "<s>"})

    async def close(self) -> None:
        self.is_closed = True

    async def _say(self, answer: ModelInfo | Exception | None) -> None:
        self._models.put_nowait(answer)
        await settled()


async def settled() -> None:
    """Lets every task run until it waits for something that this test has not said yet."""
    for _ in range(10):
        turned = asyncio.Event()
        asyncio.get_running_loop().call_soon(turned.set)
        await turned.wait()
