"""What the benchmark tells a worker beside the worker's own service: which rule to follow, and to hand over its log.

Unary calls of JSON objects on the worker's own port. A rule is chosen while no answer is under way, and holds for every
session that opens after that.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from outrider.rpc.status import error_from

CONTROL_SERVICE = "outrider.bench.Control"
"""Not part of the protocol: it exists in the benchmark's workers alone."""

Answer = Callable[[Any], Any]


def add_control(server: grpc.aio.Server, methods: dict[str, Answer]) -> None:
    """Adds the control service to `server`: each method takes and returns what JSON can hold."""
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                CONTROL_SERVICE,
                {name: grpc.unary_unary_rpc_method_handler(_served(answer)) for name, answer in methods.items()},
            ),
        )
    )


async def tell(channel: grpc.aio.Channel, method: str, content: Any = None) -> Any:
    """Calls a method of the control service. Raises OutriderError."""
    try:
        return json.loads(await channel.unary_unary(f"/{CONTROL_SERVICE}/{method}")(json.dumps(content).encode()))
    except grpc.aio.AioRpcError as error:
        raise error_from(error) from error


def _served(answer: Answer) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def serve(request: bytes, context: Any) -> bytes:
        return json.dumps(answer(json.loads(request))).encode()

    return serve
