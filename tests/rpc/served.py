"""A real server on the loopback interface, and a way to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import grpc.aio

from outrider.rpc.server import Server
from outrider.v1 import draft_pb2_grpc

DRAFT_SERVICE = "outrider.v1.DraftService"


class Served(NamedTuple):
    """A running server, its port, and a client's channel and stub."""

    server: Server
    port: int
    channel: grpc.aio.Channel
    stub: draft_pb2_grpc.DraftServiceStub


Serve = Callable[[draft_pb2_grpc.DraftServiceServicer], Awaitable[Served]]
