"""A service that is told to stop before it listens, or again after its drain, ends with a word, also as process 1."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

IMPORTING = """
from outrider.machine.sigterm import end_at_once_unless_serving
end_at_once_unless_serving("verify")
import subprocess
subprocess.Popen(["sleep", "600"])  # as a compiler, it holds the pipes open
print("importing", flush=True)
import threading
threading.Event().wait()
"""

DRAINED = """
import asyncio, threading
from outrider.machine.sigterm import end_at_once_unless_serving
from outrider.rpc.server import Server

async def serve():
    server = Server()
    await server.start("127.0.0.1:0")
    asyncio.get_running_loop().call_soon(print, "serving")
    await server.run_until_signalled(60)

end_at_once_unless_serving("verify")
asyncio.run(serve())
print("drained")
threading.Event().wait()  # for a collector of telemetry
"""

IN_A_CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
"""Runs a command as process 1 of a namespace of its own."""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_ends_with_a_word_and_what_it_has_started_with_it(number: signal.Signals, status: int) -> None:
    with subprocess.Popen([sys.executable, "-c", IMPORTING], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode == status
    assert errors == f"verify: stopped at once by {number.name}\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_so_it_does_when_it_has_drained(number: signal.Signals, status: int) -> None:
    with subprocess.Popen([sys.executable, "-u", "-c", DRAINED], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        for line in ("serving\n", "drained\n"):
            assert process.stdout.readline() == line
            process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode == status
    assert errors == f"verify: stopped at once by {number.name}\n"


def test_process_1_ends_too() -> None:
    if subprocess.run([*IN_A_CONTAINER, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces of processes here")
    telling = IMPORTING.replace('"importing"', "__import__('os').getpid()")
    command = [*IN_A_CONTAINER, "sh", "-c", 'exec "$0" -c "$1"', sys.executable, telling]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as outside:
        assert outside.stdout is not None
        assert outside.stdout.readline() == "1\n"
        (inside,) = Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text().split()
        os.kill(int(inside), signal.SIGTERM)
        _, errors = outside.communicate()
    assert outside.returncode == 0
    assert "stopped at once" in errors
