"""Guarded RPCs: a check before a method is served, whatever kind it is of, and before a missing one is told of."""

# grpcio has no types for interceptors.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from typing import Any

import grpc

from outrider.core.protocol.errors import OutriderError
from outrider.rpc.status import ServicerContext, abort

Guard = Callable[[ServicerContext], AbstractContextManager[object]]
"""Is entered before an RPC is served and left when it has ended. Raises an OutriderError to refuse it."""


def guarded(handler: Any, guard: Guard) -> Any:
    """The `handler` of a method behind `guard`. None, for a method that there is not, is behind it too."""
    handler = handler or grpc.stream_stream_rpc_method_handler(_unimplemented)
    kinds = {True: "stream", False: "unary"}
    kind = f"{kinds[handler.request_streaming]}_{kinds[handler.response_streaming]}"
    serve = getattr(handler, kind)

    async def awaited(request: Any, context: ServicerContext) -> Any:
        async with _entered(guard, context):
            return await serve(request, context)

    async def iterated(request: Any, context: ServicerContext) -> AsyncGenerator[Any]:
        async with _entered(guard, context):
            async for response in serve(request, context):
                yield response

    return handler._replace(**{kind: iterated if inspect.isasyncgenfunction(serve) else awaited})


@asynccontextmanager
async def _entered(guard: Guard, context: ServicerContext) -> AsyncGenerator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(guard(context))
        except OutriderError as error:
            await abort(context, error)
        yield


async def _unimplemented(_: Any, context: ServicerContext) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no such method here")
