"""A worker is ready as long as its device gets on."""

from __future__ import annotations

import asyncio

from outrider.worker.readiness import Readiness


class Device:
    is_busy = False
    num_turns = 0


async def test_a_device_that_is_stuck_makes_its_worker_not_ready_until_it_gets_on() -> None:
    device, told = Device(), asyncio.Queue[bool]()
    readiness = Readiness(device, told.put_nowait, 0.02)
    readiness.start()
    assert await told.get() is True
    device.is_busy = True
    assert await told.get() is False
    device.num_turns += 1
    assert await told.get() is True
    assert await told.get() is False, "stuck in the next step"
    device.is_busy = False
    assert await told.get() is True
    readiness.stop()


async def test_a_device_that_waits_for_work_is_not_stuck() -> None:
    told: list[bool] = []
    readiness = Readiness(Device(), told.append, 0.01)
    readiness.start()
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(0.1, passed.set)
    await passed.wait()
    readiness.stop()
    assert told == [True]
