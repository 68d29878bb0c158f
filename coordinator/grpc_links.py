"""The streams of one request's sessions, by gRPC, to the workers that its route leads to."""

from __future__ import annotations

from collections.abc import Collection

from coordinator.drafter_link import GrpcDrafterLink
from coordinator.links import Worker
from coordinator.replica import Replica
from coordinator.route import Route
from coordinator.verifier_link import GrpcVerifierLink
from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.core.protocol.messages import DraftOpen


class GrpcLinks:
    """See `Links`. Shared by all completions of a request, as the route is."""

    def __init__(self, route: Route) -> None:
        self._route = route

    def verifier(self, num_tokens: int, avoid: Collection[Worker]) -> GrpcVerifierLink:
        """See `Links.verifier`."""
        return GrpcVerifierLink(self._route.verifier(num_tokens, _replicas(avoid)))

    def drafter(
        self, opening: DraftOpen, verifier: Worker, avoid: Collection[Worker], statistics: SpeculationStatistics
    ) -> GrpcDrafterLink:
        """See `Links.drafter`."""
        (replica,) = _replicas([verifier])
        seat, trial = self._route.drafter(len(opening.token_ids), replica, _replicas(avoid))
        return GrpcDrafterLink(seat, trial, opening, statistics)


def _replicas(workers: Collection[Worker]) -> list[Replica]:
    """The workers of these links are replicas, each of them."""
    return [worker for worker in workers if isinstance(worker, Replica)]
