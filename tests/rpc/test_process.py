"""A service's process: how it ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SERVE = """
import atexit

from outrider.core.protocol.errors import OutriderError
from outrider.rpc.process import run_process

atexit.register(print, "the interpreter tidies up")

async def serve():
    if {fails}:
        raise OutriderError("no such device")
    print("served")

try:
    run_process("", serve)
finally:
    print("the caller tidies up")
"""


@pytest.mark.parametrize(("fails", "status"), [(False, 0), (True, 1)])
def test_a_process_leaves_when_its_caller_has_tidied_up(fails: bool, status: int) -> None:
    ended = subprocess.run([sys.executable, "-c", SERVE.format(fails=fails)], capture_output=True, text=True)
    assert ended.returncode == status, ended.stderr
    assert ("served\n" in ended.stdout) is not fails
    assert ended.stdout.endswith("the caller tidies up\n")
    assert ("no such device" in ended.stdout + ended.stderr) is fails


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
@pytest.mark.parametrize("cores", ["100000", "99999999999999999999"])
def test_cores_that_are_not_there_are_refused_in_words(cores: str) -> None:
    serve = SERVE.format(fails=False).replace('run_process("", serve)', f'run_process("{cores}", serve)')
    ended = subprocess.run([sys.executable, "-c", serve], capture_output=True, text=True)
    assert ended.returncode == 1
    assert f"--cores {cores}: this process has no such cores; see `nproc`" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert "served" not in ended.stdout


HANG = """
import asyncio, time
from outrider.machine import watchdog
from outrider.rpc.process import run_process

watchdog.HANG_SECONDS = 0.2

async def answer_slowly():
    time.sleep(600)

run_process("", answer_slowly)
"""


def test_a_process_whose_event_loop_hangs_ends_and_says_where() -> None:
    ended = subprocess.run([sys.executable, "-c", HANG], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "in answer_slowly" in ended.stderr


TURN = """
import asyncio, faulthandler
from outrider.machine import watchdog
from outrider.rpc.process import run_process

watchdog.HANG_SECONDS = 0.01
seconds = []
faulthandler.dump_traceback_later = lambda timeout, **_: seconds.append(timeout)

async def turn():
    while len(seconds) < 3:
        await asyncio.sleep(0.001)
    print(seconds[:3])

run_process("", turn)
"""


def test_an_event_loop_that_turns_puts_its_end_off() -> None:
    ended = subprocess.run([sys.executable, "-c", TURN], capture_output=True, text=True, check=True)
    assert ended.stdout == "[0.01, 0.01, 0.01]\n"
