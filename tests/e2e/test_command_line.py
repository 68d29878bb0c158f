"""The command line over three operating-system processes and the bundled pair."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from typing import Any

import grpc.aio
import pytest
from grpc_reflection.v1alpha import reflection_pb2
from openai import AsyncOpenAI

from outrider.cli.up import services
from outrider.cli.up_options import UpOptions, choose_models
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


def options(**changes: Any) -> UpOptions:
    models = choose_models(None, None, None, no_draft=False)
    return UpOptions(**{**models._asdict(), "port": 0, "draft_port": 0, "verify_port": 0, "compiled": "off", **changes})


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


async def test_generate_prints_one_object_and_target_only_the_same_tokens() -> None:
    async with services(options()) as running:
        arguments = ("generate", PROMPT, f"--address={running.coordinator}", "--json", "--max-tokens=48")
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
            "generate", "--token-ids", ids, f"--address={running.coordinator}", "--json", "--max-tokens=48", *sampled
        )
        assert code == 0, errors
        assert json.loads(output)["token_ids"] == together["token_ids"]

        code, _, errors = await outrider("generate", PROMPT, f"--address={running.coordinator}", "--temperature=-1")
        assert code != 0
        assert "temperature" in errors
        assert "Traceback" not in errors

        assert running.draft is not None
        for address, service in (
            (running.coordinator, "outrider.v1.GenerationService"),
            (running.draft, "outrider.v1.DraftService"),
            (running.verify, "outrider.v1.VerifyService"),
        ):
            for version in ("v1", "v1alpha"):
                assert {service, "grpc.health.v1.Health"} <= await listed(address, version)


async def test_run_starts_generates_compares_and_stops() -> None:
    code, output, errors = await outrider("run", PROMPT, "--max-tokens=24", "--compile=off")
    assert code == 0, errors
    assert "identical" in output + errors
    assert "rollbacks" in output + errors


@pytest.mark.parametrize(("number", "draft"), [(signal.SIGINT, "draft"), (signal.SIGTERM, "ngram")])
async def test_up_starts_what_it_is_told_drains_and_exits_with_zero(number: signal.Signals, draft: str) -> None:
    """The bundled draft model, or the drafter without a model."""
    address = free_address()
    flags = ["--port=0", "--verify-port=0", "--http-port=0", "--compile=off"]
    flags.append(f"--draft-port={address.rpartition(':')[2]}")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "outrider.cli", "up", *flags, *(["--draft=ngram"] if draft == "ngram" else [])),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    printed = ""
    while "outrider generate" not in printed:
        line = (await process.stdout.readline()).decode()
        assert line, printed
        printed += line
    async with open_channel(address) as channel:
        info = await draft_pb2_grpc.DraftServiceStub(channel).GetModelInfo(common_pb2.GetModelInfoRequest())
    assert info.model.name == draft
    (url,) = re.findall(r"OpenAI-compatible: (http://\S+)", printed)
    async with AsyncOpenAI(base_url=url, api_key="none") as client:
        assert [model.id async for model in client.models.list()] == ["target"]
    process.send_signal(number)
    output, _ = await process.communicate()
    assert process.returncode == 0, printed + output.decode()
