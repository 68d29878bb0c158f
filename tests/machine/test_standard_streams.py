"""A process that was started without standard streams, or with one that is full."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

FULL = Path("/dev/full")
"""A device that is always full. Linux has it."""

LOOKS = """
import os, sys
from outrider.machine.standard_streams import open_standard_streams

open_standard_streams()
null = os.stat(os.devnull)
print("unheard", file=sys.stderr, flush=True)
are_null = [os.path.samestat(os.fstat(number), null) for number in range(3)]
sys.exit(sum(is_null << number for number, is_null in enumerate(are_null)))
"""


@pytest.mark.parametrize("closed", [(), (0,), (2,), (0, 1, 2)])
def test_the_null_device_takes_the_place_of_those_that_are_closed(closed: tuple[int, ...]) -> None:
    def close() -> None:
        for number in closed:
            os.close(number)

    command, pipe = [sys.executable, "-c", LOOKS], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, preexec_fn=close) as process:
        process.communicate()
    assert process.returncode == sum(1 << number for number in closed)


LEAVES = """
import contextlib, sys
from outrider.machine.leaving import leave_at_exit

leave_at_exit(7)
with contextlib.suppress(OSError):
    print("unheard", file=sys.stderr)
"""


@pytest.mark.skipif(not FULL.exists(), reason=f"there is no {FULL}")
def test_a_process_leaves_although_its_last_words_cannot_be_written() -> None:
    with FULL.open("w") as full:
        assert subprocess.run([sys.executable, "-c", LEAVES], stderr=full).returncode == 7


@pytest.mark.parametrize("service", ["coordinator --verify=127.0.0.1:1 --http=", "draft_service --model=ngram"])
def test_a_service_serves_without_standard_error(service: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
    command = [sys.executable, "-m", *service.split(), f"--listen={address}"]
    with subprocess.Popen(command, preexec_fn=lambda: os.close(2)) as process:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result()
        process.terminate()
    assert process.returncode == 0
