"""Peer names: a worker is called by those whose certificates bear an allowed name, and by nobody else."""

# grpcio has no types for interceptors.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import grpc
import grpc.aio

from outrider.core.protocol.errors import PermissionDeniedError
from outrider.core.protocol.printable import printable
from outrider.rpc.guarded import guarded
from outrider.rpc.status import ServicerContext

OLD_TLS = "old_tls"
WRONG_NAME = "wrong_name"
"""Why a peer is refused, as metrics name it."""

_TLS_VERSION = "TLSv1.3"
_NAMES_MAX = 8
"""Most names of a refused certificate that the log tells."""

_log = logging.getLogger(__name__)


class PeerNames(grpc.aio.ServerInterceptor):
    """Looks at each RPC's connection, on which TLS has proven the certificate already."""

    def __init__(self, allowed: Collection[str], on_refused: Callable[[str], None]) -> None:
        """`allowed` are subject alternative names; `on_refused` hears the reason of each refusal."""
        self._allowed = frozenset(allowed)
        self._on_refused = on_refused

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """The method's handler behind the check."""
        return guarded(await continuation(handler_call_details), partial(self._check, handler_call_details.method))

    def _check(self, method: str, context: ServicerContext) -> AbstractContextManager[object]:
        found = context.auth_context()
        names = [name.decode(errors="replace") for name in found.get("x509_subject_alternative_name", ())]
        if _TLS_VERSION.encode() not in found.get("ssl_tls_version", ()):
            self._refuse(OLD_TLS, method, names, context, f"speak {_TLS_VERSION}")
        if self._allowed.isdisjoint(names):
            text = "the certificate of this connection has no name that may call this service; see its --tls-peers"
            self._refuse(WRONG_NAME, method, names, context, text)
        return nullcontext()

    def _refuse(self, reason: str, method: str, names: list[str], context: ServicerContext, text: str) -> None:
        self._on_refused(reason)
        told = printable(", ".join(names[:_NAMES_MAX]) or "none")
        _log.warning("refused a call of %s by %s (names: %s): %s", printable(method), context.peer(), told, reason)
        raise PermissionDeniedError(text)
