"""The coordinator's process with both doors: it drains both, and says what is wrong with an address."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from outrider.client import GenerationClient, Tokens
from tests.openai.conftest import Served

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.usefixtures("forked")]

LONG: dict[str, Any] = {"model": "target", "prompt": "a", "max_tokens": 200, "temperature": 0, "stream": True}


@asynccontextmanager
async def started(*flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "coordinator", "--draft=", *flags), stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def logged(process: asyncio.subprocess.Process, event: str) -> dict[str, Any]:
    """The next line of the log that tells of `event`."""
    assert process.stderr is not None
    while line := await process.stderr.readline():
        if line.startswith(b"{") and (entry := json.loads(line))["event"] == event:
            return entry
    raise AssertionError("the coordinator ended")


async def test_metrics_are_told_under_vllms_names_too(served: Served) -> None:
    flags = (f"--verify={served.verify.address}", "--listen=127.0.0.1:0", "--http=127.0.0.1:0", "--vllm-metrics=true")
    async with started(*flags) as process:
        port = (await logged(process, "listening for HTTP"))["port"]
        await logged(process, "worker found")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            answer = await client.post("/v1/completions", json={"model": "target", "prompt": "a", "max_tokens": 5})
            assert answer.status_code == 200
            told = (await client.get("/metrics")).text
    assert 'outrider_generation_tokens_total{gen_ai_request_model="target"} 5.0' in told
    assert 'vllm:generation_tokens_total{model_name="target"} 5.0' in told
    assert "outrider_num_requests_running 0.0" in told


async def test_a_signal_drains_both_doors(served: Served) -> None:
    flags = (f"--verify={served.verify.address}", "--listen=127.0.0.1:0", "--http=127.0.0.1:0")
    async with started(*flags) as process:
        http = (await logged(process, "listening for HTTP"))["port"]
        grpc = (await logged(process, "listening"))["port"]
        await logged(process, "worker found")
        async with (
            AsyncOpenAI(base_url=f"http://127.0.0.1:{http}/v1", api_key="none") as by_http,
            GenerationClient(f"127.0.0.1:{grpc}") as by_grpc,
        ):
            stream = await by_http.completions.create(**LONG, extra_body={"ignore_eos": True})
            await anext(stream)
            events = by_grpc.generate("a", max_tokens=200, ignore_eos=True)
            while not isinstance(await anext(events), Tokens):
                pass
            process.send_signal(signal.SIGTERM)
            chunks = [chunk async for chunk in stream]
            assert chunks[-1].choices[0].finish_reason == "length"
            assert [event async for event in events][-1].usage.num_generated_tokens == 200
        assert await process.wait() == 0


async def test_a_port_that_is_taken_is_one_sentence(served: Served) -> None:
    address = f"127.0.0.1:{served.http.port}"
    async with started(f"--verify={served.verify.address}", "--listen=127.0.0.1:0", f"--http={address}") as process:
        reason = (await logged(process, "cannot serve"))["reason"]
        assert reason.startswith(f"port {served.http.port} of 127.0.0.1 is in use")
        assert "--http" in reason
        assert await process.wait() == 1
