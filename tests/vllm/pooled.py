"""vLLM as its proposer sees it: a batch whose rows move, a target that decides, and Outrider's drafters beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from draft_service.config import DraftConfig
from draft_service.ngram_drafter import NgramDrafter
from draft_service.servicer import DraftServicer
from draft_service.without_model import begin
from outrider.rpc.server import Server, Service
from outrider.telemetry.setup import set_up
from outrider.v1 import draft_pb2_grpc
from outrider.vllm import RemoteProposer
from outrider.worker.access import access

TARGET = Path(__file__).parents[2] / "models" / "target"
VOCAB_SIZE = 4096
MAX_LENGTH = 4096
STEP_SECONDS = 0.005
"""Of a step of the target, in which drafters run ahead."""
NUM_SPECULATIVE_TOKENS = 5
PERIOD = 8
"""The target writes the same so many tokens over and over, which whoever reads it guesses soon."""


@dataclass
class ModelConfig:
    """What vLLM says of its target."""

    model: str = str(TARGET)
    tokenizer: str = str(TARGET)
    tokenizer_revision: str | None = None
    max_model_len: int = MAX_LENGTH
    dtype: Any = "torch.float32"

    def get_vocab_size(self) -> int:
        return VOCAB_SIZE


@dataclass
class ParallelConfig:
    """What vLLM says of a worker's place."""

    rank: int = 0
    tensor_parallel_size: int = 1


@dataclass
class SpeculativeConfig:
    """What vLLM says of drafts."""

    num_speculative_tokens: int = NUM_SPECULATIVE_TOKENS


@dataclass
class VllmConfig:
    """What a proposer is made with."""

    model_config: ModelConfig = field(default_factory=ModelConfig)
    parallel_config: ParallelConfig = field(default_factory=ParallelConfig)
    speculative_config: SpeculativeConfig = field(default_factory=SpeculativeConfig)


class Batch:
    """Rows of lines. Request number r says r, then counts from 0 to PERIOD - 1 again and again."""

    def __init__(self, proposer: RemoteProposer) -> None:
        self.lines: dict[int, list[int]] = {}
        """By request, in the order of their rows."""
        self.num_accepted: dict[int, int] = {}
        self.num_steps = 0
        self._proposer = proposer
        self._drafts: dict[int, list[int]] = {}

    def add(self, request: int) -> None:
        self.lines[request] = [VOCAB_SIZE - 1 - request]
        self.num_accepted[request] = 0

    def remove(self, request: int) -> None:
        del self.lines[request]
        self._drafts.pop(request, None)

    def arrange(self, requests: Sequence[int]) -> None:
        """The rows stand in this order from now on."""
        self.lines = {request: self.lines[request] for request in requests}

    async def step(self) -> None:
        """Decides a round of every row, and asks for the next one's drafts."""
        self.num_steps += 1
        sampled = [self._decide(request) for request in self.lines]
        lengths = np.array([len(line) for line in self.lines.values()], dtype=np.int32)
        token_ids = np.zeros((len(self.lines), MAX_LENGTH), dtype=np.int32)
        for row, line in zip(token_ids, self.lines.values(), strict=True):
            row[: len(line)] = line
        await asyncio.sleep(STEP_SECONDS)
        drafts = await asyncio.to_thread(self._proposer.propose, sampled, lengths.tolist(), token_ids, None)
        assert len(drafts) == len(sampled)
        self._drafts = dict(zip(self.lines, drafts, strict=True))

    async def until(self, holds: Callable[[], bool], num_steps: int = 400) -> None:
        """Steps until `holds`, which takes no more than `num_steps`."""
        for _ in range(num_steps):
            if holds():
                return
            await self.step()
        assert holds(), f"not after {num_steps} steps"

    def _decide(self, request: int) -> list[int]:
        line, new = self.lines[request], list[int]()
        for guess in [*self._drafts.get(request, []), None]:
            token_id = (len(line) - 1) % PERIOD
            line.append(token_id)
            new.append(token_id)
            if guess != token_id:
                break
            self.num_accepted[request] += 1
        return new


class Drafter:
    """A draft service without a model in this process."""

    def __init__(self, server: Server, address: str, drafter: NgramDrafter) -> None:
        self.address = address
        self.drafter = drafter
        self._server = server

    async def stop(self) -> None:
        """Ends it at once, and every stream with it."""
        await self._server.stop(0)


@asynccontextmanager
async def ngram_drafter(**settings: Any) -> AsyncIterator[Drafter]:
    """One that serves. Where a text repeats itself it guesses well."""
    telemetry, config = set_up("test", environ={}), DraftConfig(model="ngram", **settings)
    servicer = DraftServicer(telemetry)
    begin(servicer, config, None)
    service = Service("outrider.v1.DraftService", draft_pb2_grpc.add_DraftServiceServicer_to_server, servicer)
    transport, guards = access(config, telemetry.instruments)
    server = Server(service, transport=transport, guards=guards)
    port = await server.start("127.0.0.1:0")
    server.set_ready(True)
    try:
        yield Drafter(server, f"127.0.0.1:{port}", servicer._drafts)  # pyright: ignore[reportPrivateUsage]
    finally:
        await server.stop(None)
