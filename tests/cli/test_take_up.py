"""A coordinator that cannot use its workers says why, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import socket

import pytest

from outrider.cli import take_up
from outrider.cli.child import Child, Observer, Phase
from outrider.cli.ports import HOST
from outrider.cli.take_up import NotTakenUpError, taken_up

NOBODY = "127.0.0.1:1"


class Listening(Observer):
    """Tells when a service answers and is not ready."""

    def __init__(self) -> None:
        self.listens = asyncio.Event()

    def phase(self, name: str, phase: Phase) -> None:
        if phase is Phase.LOADING:
            self.listens.set()


async def test_why_a_coordinator_is_not_ready_is_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    observer = Listening()
    with socket.create_server((HOST, 0)) as reserved:
        address = f"{HOST}:{reserved.getsockname()[1]}"
    command = ["coordinator", f"--listen={address}", f"--verify={NOBODY}", "--draft="]
    service = "outrider.v1.GenerationService"
    child = Child("coordinator", command, address=address, health_service=service, observer=observer)
    await child.start()
    try:
        waiting = asyncio.create_task(child.ready())
        await observer.listens.wait()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        monkeypatch.setattr(take_up, "TAKE_UP_SECONDS", 0.0)
        with pytest.raises(NotTakenUpError, match=rf"the coordinator cannot use them: .*{NOBODY}"):
            await taken_up(child)
    finally:
        await child.kill()


async def test_a_coordinator_that_does_not_answer_is_said_to_do_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(Child):
        async def ready(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(take_up, "TAKE_UP_SECONDS", 0.0)
    child = Deaf("coordinator-2", [], address=NOBODY, health_service="", observer=Observer())
    with pytest.raises(NotTakenUpError, match=r"the coordinator-2 cannot use them: \S"):
        await taken_up(child)
