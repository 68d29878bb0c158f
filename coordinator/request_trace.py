"""A request's trace, gathered: the coordinator's own part, and what the workers tell that had one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from coordinator.caller import Caller
from coordinator.replica import Replica
from coordinator.workers import Workers
from outrider.core.protocol.errors import FieldViolation, InvalidRequestError, OutriderError
from outrider.core.protocol.request_trace import MissingPart, RequestTrace, TraceSpan
from outrider.telemetry import names
from outrider.telemetry.ring import SpanRing


async def gather_trace(ring: SpanRing | None, workers: Workers, name: str, asker: Caller) -> RequestTrace:
    """What is remembered of a request by that id, or in the trace with that id, of several the latest.

    Raises InvalidRequestError for a request of somebody else than the `asker`, as for one that nobody knows.
    """
    found = [] if ring is None else ring.spans(name)
    own = next((span for span in found if span.attributes.get(names.TOKEN_NAME, "") == asker.name), None)
    if own is None:
        violation = FieldViolation(
            "id", "nothing is remembered of it here: it still runs, is long over, or was another coordinator's"
        )
        raise InvalidRequestError([violation])
    request_id = str(own.attributes[names.GEN_AI_RESPONSE_ID])
    replicas = {(replica.service, replica.address): replica for replica, _ in workers}
    placed = dict.fromkeys(
        (str(event.attributes[names.REPLICA_SERVICE]), str(event.attributes[names.REPLICA_ADDRESS]))
        for event in own.events
        if event.name == names.EVENT_PLACED
    )
    parts = await asyncio.gather(*(_part(replicas, *place, request_id) for place in placed))
    return RequestTrace(
        [own, *(span for part in parts if not isinstance(part, MissingPart) for span in part)],
        [part for part in parts if isinstance(part, MissingPart)],
    )


async def _part(
    replicas: Mapping[tuple[str, str], Replica], service: str, address: str, request_id: str
) -> list[TraceSpan] | MissingPart:
    """What a worker did for the request, in the order in which it ended."""
    if (replica := replicas.get((service, address))) is None:
        return MissingPart(service, address, "it is not in the pool any more")
    try:
        spans = await replica.client.spans(request_id)
    except OutriderError as error:
        return MissingPart(service, address, str(error))
    if not spans:
        return MissingPart(
            service, address, "it remembers nothing of the request: it began anew, or has done much since"
        )
    return [span._replace(address=address) for span in reversed(spans)]
