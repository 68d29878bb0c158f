"""Health by the protocol grpc.health.v1: Check, List and Watch, one status per service name.

The servicer that grpcio ships lacks List, and its Watch holds up a drain because it never ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse

from outrider.rpc.status import ServicerContext

SERVICE_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
"""Full name of the health service."""

LIVENESS = ""
"""Service name that asks whether the process lives. It is SERVING as long as anybody answers, during a drain too."""


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Serves one status for each service name, NOT_SERVING at first, and one for liveness."""

    def __init__(self, service_names: Iterable[str]) -> None:
        self._statuses = dict.fromkeys(service_names, HealthCheckResponse.NOT_SERVING)
        self._statuses[LIVENESS] = HealthCheckResponse.SERVING
        self._changed = asyncio.Event()
        self._draining = False

    def set_ready(self, ready: bool) -> None:
        """Sets the status of every service. After `drain` it changes nothing."""
        if self._draining:
            return
        for name in self._statuses.keys() - {LIVENESS}:
            self._statuses[name] = HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING
        self._tell_watchers()

    def drain(self) -> None:
        """NOT_SERVING for good. Every Watch tells so and ends."""
        self.set_ready(False)
        self._draining = True
        self._tell_watchers()

    async def Check(self, request: HealthCheckRequest, context: ServicerContext) -> HealthCheckResponse:
        """The status of one service; NOT_FOUND if there is no such service."""
        if request.service not in self._statuses:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service; List tells those that there are")
        return HealthCheckResponse(status=self._statuses[request.service])

    async def List(self, request: HealthListRequest, context: ServicerContext) -> HealthListResponse:
        """The status of every service."""
        statuses = {name: HealthCheckResponse(status=status) for name, status in self._statuses.items()}
        return HealthListResponse(statuses=statuses)

    async def Watch(self, request: HealthCheckRequest, context: ServicerContext) -> None:
        """The status of one service, now and at each change; SERVICE_UNKNOWN if there is no such service."""
        told = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)
            if status != told:
                await context.write(HealthCheckResponse(status=status))
                told = status
            elif self._draining:
                return
            else:
                await changed.wait()

    def _tell_watchers(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
