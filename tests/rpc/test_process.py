"""A service's process: how it ends."""

from __future__ import annotations

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
