"""What a worker tells of its load, and when."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

from draft_service.ngram_drafter import NgramDrafter
from outrider.core.protocol.messages import WorkerLoad
from outrider.rpc.channels import open_channel
from outrider.rpc.stream_kind import VERIFY
from outrider.rpc.worker_client import DRAFT_SERVICE, VERIFY_SERVICE, WorkerClient
from outrider.v1 import verify_pb2_grpc
from outrider.worker.load import LoadBoard
from tests.e2e.stack import load_tiny, save_tiny, worker
from tests.engine.tiny_models import build
from tests.sessions import commands
from tests.worker.driven import Bench, engine_of

IDLE = WorkerLoad("me", 0, 0, 0, 100, 100, 0.0)


class Worker:
    """A load that changes on command, and how often it was read."""

    def __init__(self) -> None:
        self.load = IDLE
        self.num_reads = 0
        self.board = LoadBoard(self.read)

    def read(self) -> WorkerLoad:
        self.num_reads += 1
        return self.load

    def change(self, num_sessions: int) -> None:
        self.load = self.load._replace(num_sessions=num_sessions)
        self.board.touch()


async def test_the_load_comes_at_once_and_again_when_it_has_changed() -> None:
    worker = Worker()
    async with aclosing(worker.board.watch()) as loads:
        assert await anext(loads) == IDLE
        worker.change(1)
        assert (await anext(loads)).num_sessions == 1
        await asyncio.to_thread(worker.change, 2)
        assert (await anext(loads)).num_sessions == 2


async def test_many_changes_are_one_report() -> None:
    worker = Worker()
    async with aclosing(worker.board.watch()) as loads:
        await anext(loads)
        for num_sessions in range(1000):
            worker.change(num_sessions)
        assert (await anext(loads)).num_sessions == 999
        assert worker.num_reads <= 4


async def test_what_has_not_changed_is_not_told() -> None:
    worker = Worker()
    async with aclosing(worker.board.watch()) as loads:
        await anext(loads)
        worker.change(1)
        await anext(loads)
        following = asyncio.ensure_future(anext(loads))
        num_reads = worker.num_reads
        worker.board.touch()
        while worker.num_reads == num_reads:
            await asyncio.wait([following], timeout=0.01)
        assert not following.done()
        worker.change(2)
        assert (await following).num_sessions == 2


async def test_everybody_who_watches_hears_it() -> None:
    worker = Worker()
    async with aclosing(worker.board.watch()) as first, aclosing(worker.board.watch()) as second:
        await asyncio.gather(anext(first), anext(second))
        worker.change(3)
        assert [load.num_sessions for load in await asyncio.gather(anext(first), anext(second))] == [3, 3]


async def test_a_board_that_is_closed_ends_every_watch() -> None:
    worker = Worker()
    seen: list[WorkerLoad] = []

    async def watch() -> None:
        async for load in worker.board.watch():
            seen.append(load)
            worker.board.close()

    await watch()
    assert seen == [IDLE]


async def test_a_verifier_tells_its_load_over_the_wire(tmp_path: Path) -> None:
    loaded = load_tiny(save_tiny(build("llama", layers=1), tmp_path), max_sessions=2, kv_memory="1MB")
    async with (
        worker(loaded) as verify,
        open_channel(verify.address) as channel,
        aclosing(WorkerClient(channel, VERIFY_SERVICE).watch_load()) as loads,
    ):
        idle = await anext(loads)
        assert idle.instance_id == loaded.info.instance_id
        assert (idle.num_sessions, idle.num_queued) == (0, 0)
        assert idle.num_kv_tokens == idle.num_free_kv_tokens == 7808  # whole blocks of 16, 128 bytes a token
        call = verify_pb2_grpc.VerifyServiceStub(channel).Verify()
        session = Bench(engine_of()).open("s", [1, 2, 3], 40)
        await call.write(commands(VERIFY, session.verification.opening))
        while (busy := await anext(loads)).num_prompt_tokens == idle.num_prompt_tokens:
            pass
        assert busy.num_prompt_tokens == idle.num_prompt_tokens + 3
        call.cancel()
        while busy.num_sessions:
            busy = await anext(loads)


async def test_a_drafter_without_a_model_has_sessions_and_no_memory() -> None:
    load = NgramDrafter("me", max_sessions=4).load()
    assert (load.num_sessions, load.num_kv_tokens, load.num_free_kv_tokens) == (0, 0, 0)


async def test_a_drafter_tells_its_load_over_the_wire(tmp_path: Path) -> None:
    loaded = load_tiny(save_tiny(build("llama", layers=1), tmp_path), max_sessions=2)
    async with (
        worker(loaded, draft=True) as draft,
        open_channel(draft.address) as channel,
        aclosing(WorkerClient(channel, DRAFT_SERVICE).watch_load()) as loads,
    ):
        assert (await anext(loads)).instance_id == loaded.info.instance_id
