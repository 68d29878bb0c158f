"""Wake-ups by other threads: each is heard, what is added before one goes out with it, and a closed loop takes none."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable

import pytest
import uvloop

from outrider.worker.outbox import Outbox, Stamped
from outrider.worker.outlet import Outlet
from outrider.worker.self_pipe import self_pipe

NUM_WAKES = 100_000
"""More than a pipe holds bytes."""

LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])


def in_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@LOOPS
def test_every_call_is_made_though_the_pipe_is_full(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def woken() -> int:
        calls, pipe, is_last = list[None](), self_pipe(asyncio.get_running_loop()), asyncio.Event()

        def wake() -> None:
            for _ in range(NUM_WAKES):
                pipe.wake(lambda: calls.append(None))
            pipe.wake(is_last.set)

        in_thread(wake)
        await is_last.wait()
        return len(calls)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(woken()) == NUM_WAKES


@LOOPS
def test_a_loop_has_one_which_is_closed_after_it(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def two() -> bool:
        loop = asyncio.get_running_loop()
        return self_pipe(loop) is self_pipe(loop)

    before = os.listdir("/proc/self/fd")
    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(two())
    del runner
    gc.collect()
    assert os.listdir("/proc/self/fd") == before


async def test_what_is_added_before_a_flush_is_there_with_it() -> None:
    outlet = Outlet()
    outboxes = [Outbox[str](outlet, number) for number in range(3)]
    heard: list[int] = []

    async def write_out() -> None:
        await outlet.wait()
        while (outbox := outlet.next()) is not None:
            heard.append(outbox.session)

    def tell() -> None:
        for outbox in outboxes:
            outbox.add(Stamped("event", 0, 0))
        outboxes[0].flush()

    writer = asyncio.create_task(write_out())
    await asyncio.sleep(0)
    in_thread(tell)
    await writer
    assert heard == [0, 1, 2]
    again, is_past = asyncio.create_task(outlet.wait()), asyncio.Event()
    outboxes[1].flush()
    self_pipe(asyncio.get_running_loop()).wake(is_past.set)
    await is_past.wait()
    assert not again.done()
    again.cancel()


def test_whoever_tells_a_closed_loop_is_not_disturbed() -> None:
    async def opened() -> Outbox[str]:
        return Outbox[str]()

    with asyncio.Runner() as runner:
        outbox = runner.run(opened())
    in_thread(lambda: outbox.put("event", 0, 0))
    assert len(outbox.items) == 1
