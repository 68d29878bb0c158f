"""A message that was compressed is bounded by what it holds, not by what was sent."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
from served import Serve

from outrider.rpc.channels import MESSAGE_BYTES_MAX
from outrider.rpc.status import rpc_errors
from outrider.rpc.streams import EOF
from outrider.v1 import draft_pb2_grpc
from outrider.v1.draft_pb2 import DraftCommand, DraftCommands, DraftEvent, DraftEvents, DraftOpen, DraftOpened


class Characters(draft_pb2_grpc.DraftServiceServicer):
    """Tells how long a name it got."""

    @rpc_errors
    async def Draft(self, request_iterator: object, context: Any) -> None:
        while (request := await context.read()) is not EOF:
            opened = DraftOpened(num_line_tokens=len(request.commands[0].open.session_id))
            await context.write(DraftEvents(events=[DraftEvent(opened=opened)]))


@pytest.mark.parametrize(("num_bytes", "is_taken"), [(MESSAGE_BYTES_MAX // 2, True), (16 * MESSAGE_BYTES_MAX, False)])
async def test_what_a_message_inflates_to_is_bounded(serve: Serve, num_bytes: int, is_taken: bool) -> None:
    served = await serve(Characters())
    unlimited = (("grpc.max_send_message_length", -1),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}", options=unlimited) as channel:
        call = draft_pb2_grpc.DraftServiceStub(channel).Draft(compression=grpc.Compression.Gzip)
        await call.write(DraftCommands(commands=[DraftCommand(open=DraftOpen(session_id="x" * num_bytes))]))
        if is_taken:
            assert (await call.read()).events[0].opened.num_line_tokens == num_bytes
            await call.done_writing()
        assert await call.code() == (grpc.StatusCode.OK if is_taken else grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert is_taken or "message larger than max" in await call.details()
