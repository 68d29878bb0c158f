"""A replica in memory: health, admission, load reports and its own sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from structlog.testing import capture_logs

from coordinator import replica as replica_module
from coordinator import settled_log
from coordinator.replica import Replica
from outrider.core.coordinate.known_load import REPORT_LAG_SECONDS
from outrider.core.protocol.errors import ProtocolViolationError, WorkerUnavailableError
from outrider.core.protocol.messages import ModelInfo
from outrider.core.protocol.refusal import Refusal
from outrider.rpc.worker_client import VERIFY_SERVICE
from tests.coordinator.scripted_worker import MODEL, ScriptedWorker, load, settled

Admit = Callable[[Replica, ModelInfo], Awaitable[Refusal | None]]


class Watched:
    """A replica, its worker, and what it has reported."""

    def __init__(self) -> None:
        self.worker = ScriptedWorker()
        self.admit: Admit = self._admit_all
        self.changes: list[bool] = []
        self.num_seats = 0
        self.replica = Replica(
            "10.0.0.1:1",
            VERIFY_SERVICE,
            self.worker,
            admit=lambda replica, info: self.admit(replica, info),
            on_change=lambda replica: self.changes.append(replica.is_serving),
            on_seats=self._on_seats,
        )

    def _on_seats(self, replica: Replica, change: int) -> None:
        self.num_seats += change

    async def _admit_all(self, replica: Replica, info: ModelInfo) -> Refusal | None:
        return None


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    watched = Watched()
    watched.replica.start()
    yield watched
    await watched.replica.stop()
    assert watched.worker.is_closed


class Clock:
    """The monotonic clock of the replica, moved by the test."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(replica_module, "time", clock)
    return clock


async def test_a_worker_serves_and_drains_and_is_lost(watched: Watched) -> None:
    replica, worker = watched.replica, watched.worker
    assert (replica.refusal, replica.has_answered) == (Refusal("it has not answered yet"), False)
    await worker.serve()
    assert (replica.refusal, replica.is_serving, replica.model) == (None, True, MODEL)
    await worker.cease()
    assert replica.refusal == Refusal("it is loading or draining")
    assert replica.model == MODEL, "what it served last stays known"
    worker.connected = False
    await worker.cease()
    assert replica.refusal == Refusal("it cannot be reached")
    assert watched.changes == [True, False, False]
    assert replica.has_answered


async def test_a_worker_of_another_version_is_refused_until_it_is_replaced(watched: Watched) -> None:
    await watched.worker.serve(MODEL._replace(protocol_version=0))
    assert "speaks protocol version 0" in str(watched.replica.refusal)
    await watched.worker.serve()
    assert watched.replica.is_serving


async def test_what_admission_refuses_is_the_replicas_refusal(watched: Watched) -> None:
    async def refuse(replica: Replica, info: ModelInfo) -> Refusal | None:
        return Refusal("not this one")

    watched.admit = refuse
    with capture_logs() as logs:
        await watched.worker.serve()
    assert watched.replica.refusal == Refusal("not this one")
    assert [(each["event"], each["reason"]) for each in logs] == [("worker cannot be used", "not this one")]
    assert watched.changes == [False]


async def test_an_error_of_the_peer_is_the_replicas_refusal_until_it_reconnects(watched: Watched) -> None:
    await watched.worker.fail(ProtocolViolationError("it is a web server"))
    assert watched.replica.refusal == Refusal("it is a web server")
    await watched.worker.reconnect()
    await watched.worker.serve()
    assert watched.replica.is_serving


async def test_a_worker_that_did_not_answer_is_asked_again_on_the_same_connection(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been busy; or it died while it was asked, and the connection is another one already."""
    monkeypatch.setattr(replica_module, "RECOVERY_SECONDS_MIN", 0.0)
    admitted: asyncio.Queue[str] = asyncio.Queue()

    async def admit(replica: Replica, info: ModelInfo) -> Refusal | None:
        admitted.put_nowait(str(replica.refusal))
        if admitted.qsize() == 1:
            raise WorkerUnavailableError("the connection broke")
        return None

    watched.admit = admit
    with capture_logs() as logs:
        await watched.worker.serve()
    assert [each["reason"] for each in logs] == ["the connection broke"]
    await watched.worker.fail(WorkerUnavailableError("it did not answer in time"))
    await watched.worker.serve()
    while admitted.qsize() < 2:
        await settled()
    assert watched.replica.is_serving
    assert [admitted.get_nowait(), admitted.get_nowait()] == ["it has not answered yet", "it did not answer in time"]


class Panic(BaseException):
    """As tokenizers raises one: no Exception."""


@pytest.mark.parametrize("error", [KeyError, Panic, asyncio.CancelledError])
async def test_an_unexpected_error_ends_no_watch_and_is_logged_with_its_traceback(
    watched: Watched, error: type[BaseException]
) -> None:
    async def fail(replica: Replica, info: ModelInfo) -> Refusal | None:
        raise error("secret")

    watched.admit = fail
    with capture_logs() as logs:
        await watched.worker.serve()
    assert watched.replica.refusal == Refusal(
        f"it could not be taken into use ({error.__name__}); see the coordinator's log"
    ), "the peer is told no text that was not written for it"
    assert [each["event"] for each in logs] == ["unexpected error at a worker's start", "worker cannot be used"]
    assert logs[0]["exc_info"]
    watched.admit = watched._admit_all
    await watched.worker.reconnect()
    await watched.worker.serve()
    assert watched.replica.is_serving


async def test_sessions_count_until_a_report_does(watched: Watched, clock: Clock) -> None:
    replica, worker = watched.replica, watched.worker
    await worker.serve()
    first = replica.take(20)
    assert (replica.num_own_sessions, replica.replica_state.num_sessions) == (1, 1)
    assert replica.replica_state.num_unreported_tokens == 20
    await worker.report(load(num_sessions=0))
    assert replica.replica_state.num_sessions == 1, "the report is too young to know it"
    clock.now += 2 * REPORT_LAG_SECONDS
    await worker.report(load(num_sessions=1))
    assert replica.replica_state.num_unreported_tokens == 0
    assert replica.replica_state.num_sessions == 1
    first.leave()
    first.leave()
    assert (replica.num_own_sessions, replica.replica_state.num_sessions) == (0, 0), "the report still counts it"
    clock.now += 2 * REPORT_LAG_SECONDS
    await worker.report(load(num_sessions=0))
    assert replica.replica_state.num_sessions == 0
    assert watched.num_seats == 0


async def test_step_time_is_learned_from_reports_and_forgotten_with_the_process(watched: Watched) -> None:
    await watched.worker.serve()
    await watched.worker.report(load(num_sessions=1, step_ms=25.0))
    assert watched.replica.replica_state.step_time.step_ms(1) == pytest.approx(25.0)
    await watched.worker.cease()
    assert watched.replica.load is None
    await watched.worker.serve(MODEL._replace(instance_id="second"))
    assert watched.replica.replica_state.step_ms == 0.0


async def test_a_worker_that_reports_no_load_serves_all_the_same(watched: Watched) -> None:
    async def no_load() -> AsyncIterator[None]:
        raise WorkerUnavailableError("not today")
        yield

    watched.worker.watch_load = no_load  # type: ignore[assignment, method-assign]
    with capture_logs() as logs:
        await watched.worker.serve()
    assert watched.replica.is_serving
    assert logs[-1]["event"] == "worker reports no load"


async def test_health_that_flaps_is_logged_once_a_second_with_the_number_of_changes(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settled_log, "INTERVAL_SECONDS", 0.2)
    loop = asyncio.get_running_loop()
    with capture_logs() as logs:
        for _ in range(20):
            await watched.worker.serve()
            await watched.worker.cease()
        assert [each["event"] for each in logs] == ["worker found"]
        second_interval = asyncio.Event()
        loop.call_later(0.5, second_interval.set)
        await second_interval.wait()
    assert [(each["event"], each.get("changes")) for each in logs] == [
        ("worker found", None),
        ("worker not serving", 39),
    ]
    with capture_logs() as logs:
        await watched.worker.serve()
    assert [each["event"] for each in logs] == ["worker found"], "after a quiet second a change is logged at once"
    await settled()
