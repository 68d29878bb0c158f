"""Whether a coordinator takes the workers up that were started for it, and what it says if it does not."""

from __future__ import annotations

import asyncio

from outrider.cli.child import Child
from outrider.client import Credentials, GenerationClient
from outrider.core.protocol.errors import OutriderError

TAKE_UP_SECONDS = 60.0
"""Most time from a coordinator's start until it serves, all workers being ready: its imports, then each worker's answer
and the target's tokenizer, which takes seconds for the largest vocabularies, and more on a busy machine."""

_ANSWER_SECONDS = 10.0
"""Time that the coordinator gets to say what is wrong."""


class NotTakenUpError(OutriderError):
    """The workers are ready, and a coordinator cannot use them."""


async def taken_up(coordinator: Child) -> None:
    """Returns when the started `coordinator` serves.

    Raises NotTakenUpError with what it says of its workers if it does not within TAKE_UP_SECONDS, and ServiceDiedError.
    """
    try:
        async with asyncio.timeout(TAKE_UP_SECONDS):
            await coordinator.ready()
    except TimeoutError as error:
        why = await _why_not(coordinator)
        raise NotTakenUpError(f"the workers are ready, and the {coordinator.name} cannot use them: {why}") from error


async def _why_not(coordinator: Child) -> str:
    try:
        async with GenerationClient(coordinator.address, Credentials(coordinator.transport)) as client:
            info = await client.server_info(timeout_s=_ANSWER_SECONDS)
    except OutriderError as error:
        return str(error)
    problems = [f"{replica.address}: {replica.problem}" for replica in info.replicas if replica.problem]
    return "; ".join(problems) or "it does not say why; see its log"
