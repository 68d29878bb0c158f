"""Another host: what runs there is reached at its own addresses alone, and late where it is to be."""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from bench.stack.namespace import NAME, NoNamespaceError, namespace

PORT = 7007
DELAY_SECONDS = 0.05

needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("ip") is None, reason="it takes root and iproute2"
)


def seconds_of_an_answer(host: str, port: int) -> float:
    """Of a request, over a connection that is there."""
    connection = http.client.HTTPConnection(host, port, timeout=10)
    connection.connect()
    started = time.monotonic()
    connection.request("HEAD", "/")
    assert connection.getresponse().status == http.client.OK
    connection.close()
    return time.monotonic() - started


async def until_listening(host: str) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, PORT)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


@needs_root
async def test_what_runs_there_is_reached_at_its_own_addresses_as_late_as_told(tmp_path: Path) -> None:
    async with namespace() as other:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *other.command(("http.server", str(PORT), f"--directory={tmp_path}"))),
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdin is not None
        try:
            await until_listening(other.address)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", PORT)
            upstream = f"{other.address}:{PORT}"
            async with other.delayed([upstream], 1000.0 * DELAY_SECONDS) as ways:
                host, _, port = ways[upstream].rpartition(":")
                assert await asyncio.to_thread(seconds_of_an_answer, host, int(port)) >= 2 * DELAY_SECONDS
        finally:
            process.stdin.close()  # which it does not outlive
            await process.wait()
    async with namespace() as another:  # nothing of the first one is left
        assert another.address == other.address


@needs_root
async def test_there_is_one_other_host_at_a_time() -> None:
    async with namespace():
        with pytest.raises(NoNamespaceError, match=f"`ip netns delete {NAME}`"):
            async with namespace():
                pass


async def test_without_iproute2_it_is_said_what_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoNamespaceError, match="ip is not installed; it is part of iproute2"):
        async with namespace():
            pass
