"""Authorization of RPCs: whatever is not open to everybody needs a token, be it a method that there is or not."""

# grpcio has no types for interceptors.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import grpc
import grpc.aio

from coordinator import audit
from coordinator.caller import ANYONE, CALLER
from coordinator.tokens import Tokens
from outrider.core.protocol.errors import UnauthenticatedError
from outrider.rpc.guarded import guarded
from outrider.rpc.status import ServicerContext

OPEN_METHODS: Final = frozenset({f"/grpc.health.v1.Health/{name}" for name in ("Check", "List", "Watch")})
"""Full names of the methods that need no token: what probes ask, which tells no more than that the service lives."""

UNKNOWN_TOKEN: Final = "unknown_token"
"""Why a caller is refused, as metrics name it."""


class Authorization(grpc.aio.ServerInterceptor):
    """Finds out who calls, and keeps a record of it."""

    def __init__(self, tokens: Tokens, on_refused: Callable[[str], None]) -> None:
        """`on_refused` hears the reason of each refusal."""
        self._tokens = tokens
        self._on_refused = on_refused

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """The method's handler behind the check."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        return handler if method in OPEN_METHODS else guarded(handler, partial(self._guard, method))

    @contextmanager
    def _guard(self, method: str, context: ServicerContext) -> Iterator[None]:
        caller, outcome, started = ANYONE, audit.CANCELLED, time.monotonic()
        try:
            metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
            caller = self._tokens.caller(metadata.get("authorization", ""))
            CALLER.set(caller)
            yield
            outcome = audit.OK
        except UnauthenticatedError:
            outcome = grpc.StatusCode.UNAUTHENTICATED.name
            self._on_refused(UNKNOWN_TOKEN)
            raise
        except grpc.aio.AbortError:
            outcome = _name(context.code())
            raise
        finally:
            audit.record(caller, method, context.peer(), outcome, time.monotonic() - started)


def _name(code: Any) -> str:
    """Of a status, which grpcio gives as it was set or as a number."""
    return next((each.name for each in grpc.StatusCode if code in (each, each.value[0])), grpc.StatusCode.UNKNOWN.name)
