"""A worker's process answers scrapers and probes where it is told to."""

from __future__ import annotations

import asyncio
import json
import sys

import httpx


async def test_metrics_and_health_of_a_worker() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "draft_service", "--model=ngram", "--listen=127.0.0.1:0", "--metrics=127.0.0.1:0"),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        ports: dict[str, int] = {}
        while "ready" not in ports:
            entry = json.loads(await process.stderr.readline())
            ports[entry["event"]] = entry.get("port", 0)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports['listening for HTTP']}") as client:
            told = await client.get("/metrics")
            probes = [(await client.get(path)).status_code for path in ("/healthz", "/readyz", "/v1/models")]
    finally:
        process.kill()
        await process.communicate()
    assert told.headers["content-type"].startswith("text/plain")
    assert 'outrider_worker_sessions{gen_ai_request_model="ngram"} 0.0' in told.text
    assert probes == [200, 200, 404]


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
