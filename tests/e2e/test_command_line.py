"""The command line over three operating-system processes and the bundled pair."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc.aio
from grpc_reflection.v1alpha import reflection_pb2
from openai import AsyncOpenAI

from outrider.rpc.channels import open_channel
from outrider.v1 import common_pb2, draft_pb2_grpc
from tests.e2e.stack import free_address

PROMPT = "import os\n\n\ndef walk("


async def outrider(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "outrider.cli", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


@dataclass(frozen=True)
class Up:
    """What `outrider up` has started."""

    process: asyncio.subprocess.Process
    coordinator: str
    draft: str
    verify: str
    http: str

    async def draft_name(self) -> str:
        async with open_channel(self.draft) as channel:
            info = await draft_pb2_grpc.DraftServiceStub(channel).GetModelInfo(common_pb2.GetModelInfoRequest())
            return info.model.name

    async def model_names(self) -> list[str]:
        async with AsyncOpenAI(base_url=self.http, api_key="none") as client:
            return [model.id async for model in client.models.list()]

    async def end(self) -> None:
        """Returns when it has drained and exited with zero."""
        self.process.send_signal(signal.SIGINT)
        output, _ = await self.process.communicate()
        assert self.process.returncode == 0, output.decode()


@asynccontextmanager
async def up() -> AsyncIterator[Up]:
    addresses = {flag: free_address() for flag in ("port", "draft-port", "verify-port")}
    ports = [f"--{flag}={address.rpartition(':')[2]}" for flag, address in addresses.items()]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "outrider.cli", "up", "--http-port=0", "--compile=off", *ports),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    printed = ""
    try:
        while "outrider generate" not in printed:
            line = (await process.stdout.readline()).decode()
            assert line, printed
            printed += line
        (url,) = re.findall(r"OpenAI-compatible: (http://\S+)", printed)
        yield Up(process, *addresses.values(), url)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.communicate()


async def listed(address: str, version: str) -> set[str]:
    """The services that reflection of `version` names at `address`."""
    async with open_channel(address) as channel:
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        response = await call.read()
        assert response is not grpc.aio.EOF
        return {service.name for service in response.list_services_response.service}


async def generate_prints_one_object_and_target_only_the_same_tokens(address: str) -> None:
    arguments = ("generate", PROMPT, f"--address={address}", "--json", "--max-tokens=48")
    sampled = ("--temperature=0.8", "--top-p=0.95", "--seed=3")
    code, output, errors = await outrider(*arguments, *sampled)
    assert code == 0, errors
    together = json.loads(output)
    alone = json.loads((await outrider(*arguments, *sampled, "--target-only"))[1])
    assert together["token_ids"] == alone["token_ids"]
    assert together["text"] == alone["text"]
    assert (together["mode"], alone["mode"]) == ("speculative", "target_only")
    assert together["seed"] == 3
    assert together["speculation"]["num_accepted_tokens"] > 0

    ids = ",".join(map(str, together["prompt_token_ids"]))
    code, output, errors = await outrider(
        "generate", "--token-ids", ids, f"--address={address}", "--json", "--max-tokens=48", *sampled
    )
    assert code == 0, errors
    assert json.loads(output)["token_ids"] == together["token_ids"]

    code, _, errors = await outrider("generate", PROMPT, f"--address={address}", "--temperature=-1")
    assert code != 0
    assert "temperature" in errors
    assert "Traceback" not in errors


async def test_up_serves_the_command_line_drains_and_exits_with_zero() -> None:
    async with up() as running:
        assert await running.draft_name() == "draft"
        assert await running.model_names() == ["target"]
        await generate_prints_one_object_and_target_only_the_same_tokens(running.coordinator)
        for address, service in (
            (running.coordinator, "outrider.v1.GenerationService"),
            (running.draft, "outrider.v1.DraftService"),
            (running.verify, "outrider.v1.VerifyService"),
        ):
            for version in ("v1", "v1alpha"):
                assert {service, "grpc.health.v1.Health"} <= await listed(address, version)
        await running.end()


async def test_run_starts_generates_compares_and_stops() -> None:
    """With the drafter without a model."""
    code, output, errors = await outrider("run", PROMPT, "--max-tokens=24", "--compile=off", "--draft=ngram")
    assert code == 0, errors
    assert "identical" in output + errors
    assert "rollbacks" in output + errors
