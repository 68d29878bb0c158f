"""The client without asyncio, against a real server in another thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import pytest

from outrider.client import Finished, Started, SyncGenerationClient, Tokens
from outrider.core.protocol.errors import FieldViolation, InvalidRequestError, WorkerUnavailableError
from tests.client.scripted import ROUNDS, TEXT, TWO, ScriptedCoordinator, serving


@contextmanager
def served(script: Sequence[object] = ROUNDS) -> Iterator[tuple[str, ScriptedCoordinator]]:
    """A coordinator on an event loop in another thread."""
    found: list[tuple[str, ScriptedCoordinator]] = []
    begun = threading.Event()
    ends: list[Callable[[], None]] = []

    async def serve() -> None:
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(end.set))
        coordinator = ScriptedCoordinator(script)
        async with serving(coordinator) as address:
            found.append((address, coordinator))
            begun.set()
            await end.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    begun.wait()
    try:
        yield found[0]
    finally:
        ends[0]()
        thread.join()


def test_the_events_are_those_of_the_other_client() -> None:
    with served() as (address, coordinator), SyncGenerationClient(address) as client:
        events = list(client.generate("import os\n", max_tokens=6))
        assert isinstance(events[0], Started)
        assert isinstance(events[-1], Finished)
        assert "".join(event.text for event in events if not isinstance(event, Started)) == TEXT
        assert client.server_info().version == "1.2.3"
    assert coordinator.requests[0].max_tokens == 6


def test_a_whole_answer() -> None:
    with served(TWO) as (address, _), SyncGenerationClient(address) as client:
        answer = client.gather("x", num_completions=2)
    assert [completion.text for completion in answer.completions] == ["first ends", "second ends early!"]


def test_errors_are_raised_as_they_are() -> None:
    refusal = InvalidRequestError([FieldViolation("max_tokens", "must be at least 1")])
    with (
        served([refusal]) as (address, _),
        SyncGenerationClient(address) as client,
        pytest.raises(InvalidRequestError, match="at least 1"),
    ):
        next(client.generate("x"))
    with (
        served([...]) as (address, _),
        SyncGenerationClient(address) as client,
        pytest.raises(WorkerUnavailableError, match="in time"),
    ):
        client.gather("x", timeout_s=0.1)


def test_leaving_early_cancels_the_call() -> None:
    with served([*ROUNDS[:2], ...]) as (address, coordinator), SyncGenerationClient(address) as client:
        with closing(client.generate("x")) as events:
            assert [type(next(events)) for _ in range(2)] == [Started, Tokens]
        client.server_info()
        while not coordinator.left.is_set():
            client.server_info()


def test_threads_may_share_one() -> None:
    texts: list[str] = []
    with served() as (address, _), SyncGenerationClient(address) as client:
        threads = [
            threading.Thread(target=lambda: texts.append(client.gather("x").completions[0].text)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert texts == [TEXT] * 4


def test_a_closed_client_leaves_no_thread() -> None:
    with served([*ROUNDS[:2], ...]) as (address, coordinator):
        client = SyncGenerationClient(address)
        events = client.generate("x")
        assert isinstance(next(events), Started)
        client.close()
        client.close()
        events.close()
        while not coordinator.left.is_set():
            threading.Event().wait(0.01)
    assert "outrider-client" not in {thread.name for thread in threading.enumerate()}
