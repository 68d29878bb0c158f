"""A worker's process answers scrapers and probes where it is told to."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from outrider.cli.certificates import make_certificates

pytestmark = pytest.mark.usefixtures("forked")


@asynccontextmanager
async def listening(*flags: str) -> AsyncIterator[int]:
    """The port at which a worker without a model answers HTTP."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "draft_service", "--model=ngram", "--listen=127.0.0.1:0", "--metrics=127.0.0.1:0"),
        *flags,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        ports: dict[str, int] = {}
        while "ready" not in ports:
            entry = json.loads(await process.stderr.readline())
            ports[entry["event"]] = entry.get("port", 0)
        yield ports["listening for HTTP"]
    finally:
        process.kill()
        await process.communicate()


async def test_metrics_and_health_of_a_worker() -> None:
    async with listening() as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        told = await client.get("/metrics")
        probes = [(await client.get(path)).status_code for path in ("/healthz", "/readyz", "/v1/models")]
    assert told.headers["content-type"].startswith("text/plain")
    assert 'outrider_worker_sessions{gen_ai_request_model="ngram"} 0.0' in told.text
    assert probes == [200, 200, 404]


async def test_a_probe_without_a_certificate_is_answered_by_tls(tmp_path: Path) -> None:
    """As Kubernetes probes a worker that speaks TLS."""
    make_certificates(tmp_path)
    files = {"cert": "draft.pem", "key": "draft.key", "ca": "ca.pem"}
    async with listening(*(f"--tls-{setting}={tmp_path / file}" for setting, file in files.items())) as port:
        authority = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=authority) as client:
            probes = [(await client.get(path)).status_code for path in ("/healthz", "/readyz", "/metrics")]
    assert probes == [200, 200, 200]


async def test_a_taken_port_is_told_with_its_flag() -> None:
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    async with taken:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "draft_service", "--model=ngram", "--listen=127.0.0.1:0"),
            f"--metrics=127.0.0.1:{port}",
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert f"port {port} of 127.0.0.1 is in use" in errors.decode()
    assert "--metrics" in errors.decode()
