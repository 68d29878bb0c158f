"""Workers that keep sessions waiting: silent, stuck, idle, slow, or about to stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from coordinator import replica as replica_module
from coordinator import vigil
from coordinator.replica import Replica, Seat
from outrider.core.protocol.messages import ModelInfo, WorkerLoad
from outrider.core.protocol.refusal import Refusal
from outrider.rpc.worker_client import DRAFT_SERVICE, VERIFY_SERVICE
from tests.coordinator.scripted_worker import ScriptedWorker, load

SILENCE_SECONDS = 0.1


class Asked(ScriptedWorker):
    """A worker that a test makes answer as it likes."""

    def __init__(self, answer: Callable[[int], WorkerLoad | None]) -> None:
        super().__init__()
        self.give = answer
        self._asked = asyncio.Condition()

    async def ask_load(self) -> WorkerLoad:
        async with self._asked:
            self.num_asked += 1
            self._asked.notify_all()
        if (answer := self.give(self.num_asked)) is not None:
            return answer
        await asyncio.Event().wait()
        raise AssertionError

    async def until_asked(self, count: int) -> None:
        async with self._asked:
            await self._asked.wait_for(lambda: self.num_asked >= count)


class Place:
    """A seat at a replica, and whether it was lost."""

    def __init__(self, replica: Replica) -> None:
        self.seat: Seat = replica.take(10)
        self.is_lost = asyncio.Event()
        self.seat.on_loss = self.is_lost.set


class Scene:
    """A replica that serves, with peers or without."""

    def __init__(self, worker: Asked, service: str, has_peers: bool) -> None:
        self.has_peers = has_peers
        self.changed = asyncio.Condition()
        self.worker = worker
        self._notices: set[asyncio.Task[None]] = set()
        self.replica = Replica(
            "10.0.0.1:1",
            service,
            worker,
            admit=self._admit,
            on_change=lambda _: self._notices.add(asyncio.create_task(self._notify())),
            on_seats=lambda replica, change: None,
            has_peers=lambda replica: self.has_peers,
            silence_seconds=SILENCE_SECONDS,
        )

    async def until_serving(self, is_serving: bool) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.replica.is_serving is is_serving)

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _admit(self, replica: Replica, info: ModelInfo) -> Refusal | None:
        return None


@asynccontextmanager
async def scene(
    answer: Callable[[int], WorkerLoad | None], *, service: str = VERIFY_SERVICE, has_peers: bool = True
) -> AsyncIterator[Scene]:
    made = Scene(Asked(answer), service, has_peers)
    made.replica.start()
    await made.worker.serve()
    try:
        yield made
    finally:
        await made.replica.stop()


def silent(_: int) -> None:
    """No answer."""


def stuck(_: int) -> WorkerLoad:
    return load()._replace(progress=7, is_busy=True)


def slow(number: int) -> WorkerLoad:
    return load()._replace(progress=number, is_busy=True)


def idle(_: int) -> WorkerLoad:
    return load()._replace(progress=7, is_busy=False)


@pytest.mark.parametrize("service", [VERIFY_SERVICE, DRAFT_SERVICE])
async def test_a_silent_worker_is_left_by_all_and_taken_back_when_it_answers(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vigil, "RECOVERY_SECONDS_MIN", 0.01)
    async with scene(silent, service=service) as made:
        places = [Place(made.replica), Place(made.replica)]
        for place in places:
            await place.is_lost.wait()
            assert "has not answered for 0.1 s" in str(place.seat.loss)
            assert not place.seat.is_handed_over
        assert not made.replica.is_serving
        made.worker.give = idle
        await made.until_serving(True)


async def test_a_worker_that_is_stuck_is_left_and_taken_back_when_it_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vigil, "RECOVERY_SECONDS_MIN", 0.01)
    async with scene(stuck) as made:
        place = Place(made.replica)
        await place.is_lost.wait()
        assert "has not got on for 0.1 s" in str(place.seat.loss)
        await made.worker.until_asked(made.worker.num_asked + 3)
        assert not made.replica.is_serving, "it answers, and is as stuck as before"
        made.worker.give = slow
        await made.until_serving(True)


@pytest.mark.parametrize("answer", [slow, lambda number: load()._replace(progress=number)])
async def test_a_worker_whose_steps_are_long_is_waited_for(answer: Callable[[int], WorkerLoad]) -> None:
    async with scene(answer) as made:
        place = Place(made.replica)
        await made.worker.until_asked(12)
        assert made.replica.is_serving
        assert not place.is_lost.is_set()


async def test_a_verifier_that_is_idle_has_lost_the_sessions_that_wait_for_it() -> None:
    async with scene(idle) as made:
        waiting, busy = Place(made.replica), Place(made.replica)
        busy.seat.hears()
        await waiting.is_lost.wait()
        assert "nothing to do" in str(waiting.seat.loss)
        assert not busy.is_lost.is_set()
        assert made.replica.is_serving


async def test_a_drafter_may_be_idle() -> None:
    async with scene(idle, service=DRAFT_SERVICE) as made:
        place = Place(made.replica)
        await made.worker.until_asked(12)
        assert not place.is_lost.is_set()


async def test_a_worker_for_which_no_session_waits_is_not_asked() -> None:
    async with scene(silent) as made:
        place, other = Place(made.replica), Place(made.replica)
        place.seat.hears()
        other.seat.leave()
        loop, passed = asyncio.get_running_loop(), asyncio.Event()
        loop.call_later(3 * SILENCE_SECONDS, passed.set)
        await passed.wait()
        assert (made.worker.num_asked, place.is_lost.is_set()) == (0, False)


async def test_a_verifier_without_peers_is_waited_for_longer_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vigil, "ALONE_SECONDS", 0.6)
    async with scene(silent, has_peers=False) as made:
        place = Place(made.replica)
        await place.is_lost.wait()
        assert "has not answered for 0.6 s" in str(place.seat.loss)


async def test_peers_that_come_while_a_verifier_is_silent_take_over() -> None:
    async with scene(silent, has_peers=False) as made:
        place = Place(made.replica)
        await made.worker.until_asked(5)
        assert not place.is_lost.is_set()
        made.has_peers = True
        await place.is_lost.wait()


async def test_a_verifier_that_drains_hands_its_sessions_over_as_soon_as_another_can_take_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_module, "HANDOVER_SECONDS", 0.02)
    async with scene(slow, has_peers=False) as made:
        place = Place(made.replica)
        made.worker.connected = False  # gRPC says goodbye when a drain begins, and streams go on
        await made.worker.cease()
        await made.worker.until_asked(5)
        assert not place.is_lost.is_set(), "it may end where it is"
        made.has_peers = True
        await place.is_lost.wait()
        assert place.seat.is_handed_over


async def test_a_session_that_no_other_verifier_could_take_stays_at_one_that_drains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_module, "HANDOVER_SECONDS", 0.02)
    async with scene(slow) as made:
        long, short = Place(made.replica), Place(made.replica)
        is_larger = False
        long.seat.can_move = lambda: is_larger
        await made.worker.cease()
        await short.is_lost.wait()
        short.seat.leave()
        assert not long.is_lost.is_set()
        is_larger = True
        await long.is_lost.wait()
        assert long.seat.is_handed_over


async def test_a_drafter_that_drains_hands_its_sessions_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module, "HANDOVER_SECONDS", 1000.0)
    async with scene(slow, service=DRAFT_SERVICE) as made:
        place = Place(made.replica)
        made.worker.connected = False
        await made.worker.cease()
        await place.is_lost.wait()
        assert place.seat.is_handed_over


async def test_a_drafter_that_drains_keeps_its_sessions_until_another_one_can_take_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_module, "HANDOVER_SECONDS", 0.02)
    monkeypatch.setattr(replica_module, "DRAFTER_HANDOVER_SECONDS", 0.0)
    async with scene(slow, service=DRAFT_SERVICE, has_peers=False) as made:
        place = Place(made.replica)
        await made.worker.cease()
        await made.worker.until_asked(5)
        assert not place.is_lost.is_set()
        made.has_peers = True
        await place.is_lost.wait()
        assert place.seat.is_handed_over


async def test_a_worker_that_comes_back_keeps_its_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module, "HANDOVER_SECONDS", 0.1)
    async with scene(slow) as verifier:
        place = Place(verifier.replica)
        await verifier.worker.cease()
        await verifier.worker.serve()
        await verifier.worker.until_asked(8)
        assert not place.is_lost.is_set()
