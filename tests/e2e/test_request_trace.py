"""What became of a request, as the services remember it: no collector, and nobody else's requests."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from coordinator.caller import CALLER, Caller
from draft_service.config import DraftConfig
from draft_service.servicer import DraftServicer
from draft_service.without_model import begin
from outrider.core.protocol.errors import InvalidRequestError
from outrider.core.protocol.options import GenerationOptions
from outrider.core.protocol.request_trace import RequestTrace, TraceSpan
from outrider.rpc.server import Server, Service
from outrider.rpc.wire import decode_request_trace, encode_request_trace
from outrider.telemetry import names
from outrider.telemetry.ring import SpanRing
from outrider.telemetry.setup import Telemetry, set_up
from outrider.token_file import TokenEntry
from outrider.v1.draft_pb2_grpc import add_DraftServiceServicer_to_server
from tests.e2e.answers import Answer, ask
from tests.e2e.stack import SILENT, RunningWorker, Stack, bundled, coordinator, worker

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASKED: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True}


def remembering(service: str) -> Telemetry:
    return set_up(service, environ={}, ring=SpanRing())


@dataclass
class Remembering:
    """A stack whose services remember."""

    stack: Stack
    verify: RunningWorker
    draft: RunningWorker

    async def whole_trace(self, name: str) -> RequestTrace:
        """When every part is told: a drafter may hear of the end a little later than the client."""
        found = await self.stack.client.trace(name)
        while found.missing:
            found = await self.stack.client.trace(name)
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[Remembering]:
    async with AsyncExitStack() as up:
        verify = await up.enter_async_context(worker(bundled("target"), telemetry=remembering("outrider-verify")))
        draft = await up.enter_async_context(
            worker(bundled("draft"), draft=True, telemetry=remembering("outrider-draft"))
        )
        stack = await up.enter_async_context(
            coordinator(verify.address, draft.address, telemetry=remembering("outrider-coordinator"))
        )
        yield Remembering(stack, verify, draft)


def of(trace: RequestTrace, service: str) -> TraceSpan:
    (span,) = [each for each in trace.spans if each.service == service]
    return span


def numbers(span: TraceSpan, name: str) -> list[float]:
    values = span.attributes[name]
    assert isinstance(values, list)
    return [float(each) for each in values]


async def asked(running: Remembering) -> Answer:
    return await ask(running.stack.client, "import os\n", **ASKED)


async def test_all_three_services_tell_their_part(running: Remembering) -> None:
    answer = await asked(running)
    trace = await running.whole_trace(answer.started.request_id)
    request, verified, drafted = (of(trace, f"outrider-{name}") for name in ("coordinator", "verify", "draft"))
    assert (verified.address, drafted.address) == (running.verify.address, running.draft.address)
    assert {span.trace_id for span in trace.spans} == {answer.started.trace_id}
    assert verified.parent_id == drafted.parent_id == request.span_id
    speculation = answer.finished.speculation
    assert len(numbers(request, names.ROUNDS_MS)) == speculation.num_rounds
    assert len(numbers(verified, names.STEPS_START_MS)) == speculation.num_rounds
    assert sum(numbers(verified, names.STEPS_NUM_ACCEPTED)) == speculation.num_accepted_tokens
    assert sum(numbers(verified, names.STEPS_DURATION_MS)) == pytest.approx(answer.finished.timings.verify_ms, rel=1e-4)
    assert sum(numbers(drafted, names.STEPS_NUM_NODES)) == drafted.attributes[names.SESSION_NUM_NODES]
    starts = numbers(verified, names.STEPS_START_MS)
    assert starts == sorted(starts)
    assert decode_request_trace(encode_request_trace(trace)) == trace


async def test_the_trace_leads_to_the_request_and_nonsense_to_nothing(running: Remembering) -> None:
    answer = await asked(running)
    by_trace = await running.whole_trace(answer.started.trace_id)
    assert of(by_trace, "outrider-coordinator").attributes[names.GEN_AI_RESPONSE_ID] == answer.started.request_id
    for name in ("", "x", answer.started.request_id[:-1], f"{answer.started.request_id}.0"):
        with pytest.raises(InvalidRequestError, match="id: nothing is remembered of it here"):
            await running.stack.client.trace(name)


async def test_neither_prompt_nor_answer_is_remembered(running: Remembering) -> None:
    answer = await ask(running.stack.client, "def secret_name(\n", **ASKED, stop=["zebra crossing"])
    told = str(await running.whole_trace(answer.started.request_id))
    assert "secret_name" not in told
    assert "zebra" not in told
    assert answer.text not in told


async def test_a_request_is_told_to_nobody_but_who_made_it(running: Remembering) -> None:
    service = running.stack.service
    request_ids: dict[str, str] = {}
    for name in ("ann", "ben"):
        CALLER.set(Caller(TokenEntry(name=name, sha256="0" * 64)))
        async with aclosing(service.generate("import", GenerationOptions(max_tokens=2))) as events:
            request_ids[name] = (await anext(events)).request_id  # type: ignore[union-attr]
            _ = [event async for event in events]
    assert (await service.trace(request_ids["ben"])).spans[0].attributes[names.TOKEN_NAME] == "ben"
    with pytest.raises(InvalidRequestError, match="nothing is remembered of it"):
        await service.trace(request_ids["ann"])


async def test_a_worker_that_was_lost_leaves_a_gap_that_is_named(running: Remembering) -> None:
    servicer = DraftServicer(SILENT)
    begin(servicer, DraftConfig(model="ngram"), None)
    drafter = Server(Service("outrider.v1.DraftService", add_DraftServiceServicer_to_server, servicer))
    address = f"127.0.0.1:{await drafter.start('127.0.0.1:0')}"
    drafter.set_ready(True)
    async with coordinator(running.verify.address, address, telemetry=remembering("outrider-coordinator")) as stack:
        answer = await ask(stack.client, "import os\n", **ASKED)
        forgets = await stack.client.trace(answer.started.request_id)
        await drafter.stop(None)
        is_gone = await stack.client.trace(answer.started.request_id)
    for trace in (forgets, is_gone):
        assert [span.service for span in trace.spans] == ["outrider-coordinator", "outrider-verify"]
        (part,) = trace.missing
        assert (part.service, part.address) == ("outrider.v1.DraftService", address)
    assert "remembers nothing" in forgets.missing[0].reason
    assert "cannot be reached" in is_gone.missing[0].reason


async def test_the_command_prints_it(running: Remembering) -> None:
    answer = await asked(running)
    await running.whole_trace(answer.started.request_id)

    async def outrider(*arguments: str) -> tuple[int | None, str, str]:
        command = (sys.executable, "-m", "outrider.cli", "trace", *arguments, "--address", running.stack.address)
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    code, out, err = await outrider(f"cmpl-{answer.started.request_id}")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert answer.started.request_id in lines[0]
    assert len([line for line in lines if " round " in line]) == answer.finished.speculation.num_rounds
    assert any(f"draft {running.draft.address}" in line and "drafts" in line for line in lines)
    _, out, _ = await outrider(answer.started.request_id, "--json")
    assert len([each for each in json.loads(out)["entries"] if each["kind"] == "round"]) == (
        answer.finished.speculation.num_rounds
    )
    code, _, err = await outrider("0" * 32)
    assert code == 2
    assert "nothing is remembered" in err
