"""Whichever signal ends a command, what it runs tidies up after itself first."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from outrider.cli.run import until_signalled


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_runs_and_waits_for_it(number: signal.Signals) -> None:
    steps: list[str] = []

    async def main() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("tidied up")

    assert until_signalled(main())
    assert steps == ["tidied up"]


def test_what_ends_by_itself_was_not_ended_by_a_signal() -> None:
    assert not until_signalled(asyncio.sleep(0))
