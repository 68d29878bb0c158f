"""The drafters that vLLM may use: found, watched and chosen as a coordinator does it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace

from coordinator.drafter_choice import may_take, take_drafter
from coordinator.drafter_link import GrpcDrafterLink
from coordinator.fitting import pair_refusal
from coordinator.links import Worker
from coordinator.pool import Pool
from coordinator.replica import Replica
from coordinator.resolution import Resolve, parse_endpoints, resolve
from coordinator.workers import summary
from outrider.core.coordinate.drafter_bandit import DrafterBandit
from outrider.core.coordinate.drafter_choice import DrafterDemand
from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.core.protocol.messages import DraftOpen, ModelInfo
from outrider.core.protocol.refusal import Refusal
from outrider.rpc.tls_files import TlsFiles
from outrider.rpc.transport import PLAINTEXT, Transport
from outrider.rpc.worker_client import DRAFT_SERVICE, WorkerClient
from outrider.vllm.config import PoolConfig


class DraftPool:
    """See `DrafterLinks`. To be used on one event loop."""

    def __init__(self, config: PoolConfig, target: ModelInfo, resolver: Resolve = resolve) -> None:
        """`target` is what vLLM serves: drafters that do not fit it get no sessions."""
        self.target = target
        self.step_ms = 0.0
        """How long a step of vLLM takes at present; 0 while unknown."""
        transport = Transport(TlsFiles(config.tls_cert, config.tls_key, config.tls_ca)) if config.tls_ca else PLAINTEXT
        self._bandit = DrafterBandit()
        self._is_answered = asyncio.Event()
        self._pool = Pool(
            DRAFT_SERVICE,
            parse_endpoints(config.draft),
            admit=self._admit,
            on_change=self._on_change,
            on_seats=lambda replica, change: None,
            connect=lambda address, service: WorkerClient.connect(
                address, service, transport.to_peer(config.tls_draft_name)
            ),
            resolver=resolver,
            silence_seconds=config.silence_seconds,
        )

    def start(self) -> None:
        """Begins to look for drafters."""
        self._pool.start()

    async def answered(self) -> None:
        """Waits until one drafter serves, or all have been asked once."""
        await self._is_answered.wait()

    async def stop(self) -> None:
        """Leaves all drafters."""
        await self._pool.stop()

    def drafter(
        self, opening: DraftOpen, verifier: Worker, avoid: Collection[Worker], statistics: SpeculationStatistics
    ) -> GrpcDrafterLink:
        """See `DrafterLinks.drafter`. A drafter with less context than the target drafts as far as that goes."""
        found = [replica for replica in self._pool.serving if replica not in avoid]
        if not found:
            reasons = summary(self._pool.refusals) or "there is no other one"
            raise WorkerUnavailableError(f"no draft service can be used ({reasons})")
        demand = DrafterDemand(
            num_tokens=len(opening.token_ids),
            max_length=len(opening.token_ids) + 1,
            greedy=True,  # vLLM does not tell how it samples
            verify_step_ms=self.step_ms,
        )
        seat, trial = take_drafter(found, self._bandit, demand)
        seat.can_move = lambda: any(
            other is not seat.replica and other not in avoid and may_take(other, demand) for other in self._pool.serving
        )
        max_context = seat.replica.model.max_context if seat.replica.model is not None else 0
        opening = replace(opening, max_length=min(opening.max_length, max_context))
        return GrpcDrafterLink(seat, trial, opening, statistics)

    async def _admit(self, _replica: Replica, info: ModelInfo) -> Refusal | None:
        return pair_refusal(self.target, info)

    def _on_change(self) -> None:
        if self._pool.has_answered:
            self._is_answered.set()
