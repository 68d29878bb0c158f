"""A forked process is to who starts it what a started one is."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from outrider.machine.tether import tethered
from tests.forkserver.process import Process, arguments_of

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="there are subreapers on Linux alone"),
    pytest.mark.usefixtures("forked"),
]


started = subprocess.Popen
"""As it is before the fixture takes its place."""


def coordinator(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "coordinator", *arguments]


@pytest.mark.parametrize(("listen", "status"), [("nonsense", 2), ("127.0.0.1:0", 0)])
def test_it_says_and_returns_what_a_started_one_does(listen: str, status: int) -> None:
    command, environment = coordinator(*["--help"] * (not status)), {**os.environ, "OUTRIDER_LISTEN": listen}
    forked, begun = (
        popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for popen in (subprocess.Popen, started)
    )
    assert (type(forked), type(begun)) == (Process, started)
    assert forked.communicate() == begun.communicate()
    assert forked.returncode == begun.returncode == status


async def test_it_is_a_child_in_a_session_of_its_own_and_ends_with_who_holds_its_standard_input(tmp_path: Path) -> None:
    listening = ("--verify=127.0.0.1:1", "--draft=", "--listen=127.0.0.1:0", "--http=")
    process = await asyncio.create_subprocess_exec(
        *tethered("coordinator", *listening),
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp_path,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    assert await process.stderr.readline()
    about = Path(f"/proc/{process.pid}")
    assert int(about.joinpath("stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()
    assert os.getsid(process.pid) == process.pid
    assert about.joinpath("cwd").resolve() == tmp_path
    process.stdin.close()
    assert await process.wait() == -signal.SIGKILL


def test_it_is_killed_as_others_are() -> None:
    with subprocess.Popen(coordinator("--verify=127.0.0.1:1", "--listen=127.0.0.1:0", "--http="), stderr=-1) as process:
        assert isinstance(process, Process)
        assert process.stderr is not None
        process.stderr.readline()
        process.kill()
    assert process.returncode == -signal.SIGKILL


def test_other_commands_are_started() -> None:
    assert arguments_of(coordinator("--help")) == ["coordinator", "--help"]
    for command in ([sys.executable, "-m", "outrider.cli"], [sys.executable, "-c", ""], ["env", *coordinator()]):
        assert arguments_of(command) is None
    assert subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, text=True).stdout == "1\n"
