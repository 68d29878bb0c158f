"""Routing: which verifier and which drafter the sessions of one request go to, at first and after a loss."""

from __future__ import annotations

import time
from collections.abc import Collection, Hashable

from coordinator.fitting import alike_refusal
from coordinator.replica import Replica, Seat
from coordinator.request import GenerationRequest
from coordinator.workers import Workers, summary
from outrider.core.coordinate.drafter_bandit import Trial
from outrider.core.coordinate.placement import DrafterCandidate, choose_drafter, choose_verifier, overload
from outrider.core.protocol.errors import ModelMismatchError, WorkerUnavailableError
from outrider.core.protocol.messages import ModelInfo
from outrider.core.protocol.refusal import Refusal


class Route:
    """Shared by all completions of a request, so that one verifier prefills their prompt once."""

    def __init__(self, workers: Workers, request: GenerationRequest, target: ModelInfo) -> None:
        """Raises ModelMismatchError if drafts are wanted and no drafter of the pool fits."""
        if request.speculate and (mismatch := workers.drafter_mismatch()) is not None:
            raise ModelMismatchError(mismatch.text)
        self._workers = workers
        self._request = request
        self._target = target
        self._last: Replica | None = None
        """The verifier that was chosen last."""

    def verifier(self, num_tokens: int, avoid: Collection[Replica] = ()) -> Seat:
        """A seat for a session with a line of `num_tokens`, at none of those to `avoid`.

        Raises WorkerUnavailableError if no verifier is left.
        """
        found = self._verifiers(avoid)
        if not found:
            raise WorkerUnavailableError("no verify service is left that could take the request; try again later")
        # Another completion shares the prompt's KV cache, so it goes elsewhere only if all slots are taken.
        if self._last not in found or self._last.replica_state.no_room(0):
            num_rounds = self._request.max_length - num_tokens
            self._last = found[choose_verifier([each.replica_state for each in found], num_tokens, num_rounds)]
        if avoid:
            self._workers.instruments.count_move(service=self._last.service)
        seat = self._last.take(num_tokens)
        seat.can_move = lambda: bool(self._verifiers([seat.replica]))
        return seat

    def drafter(self, num_tokens: int, verifier: Replica, avoid: Collection[Replica] = ()) -> tuple[Seat, Trial]:
        """A seat for a session with a line of `num_tokens` that `verifier` decides, at none of those to `avoid`.

        Also returns the trial that begins for the drafter bandit. Raises WorkerUnavailableError, which says why, if no
        drafter should be used.
        """
        workers, greedy, now = self._workers, self._request.sampling.greedy, time.monotonic()
        verify_step_ms = verifier.replica_state.step_ms
        found: list[Replica] = []
        candidates: list[DrafterCandidate] = []
        refusals: list[Refusal] = []
        for replica in workers.usable(workers.drafters):
            if replica in avoid:
                continue
            replica_state = replica.replica_state
            refusal = (
                replica.breaker.refusal(now)
                or self._short_context(replica)
                or overload(replica_state, num_tokens, verify_step_ms)
            )
            if refusal is not None:
                refusals.append(Refusal(f"{replica.address}: {refusal}"))
            else:
                found.append(replica)
                worth = workers.drafter_bandit.worth(_kind(replica), greedy=greedy)
                candidates.append(DrafterCandidate(replica_state, worth, replica.breaker.num_failures))
        if not found:
            raise WorkerUnavailableError(self._no_drafter(refusals))
        chosen = found[choose_drafter(candidates, verify_step_ms)]
        if avoid:
            workers.instruments.count_move(service=chosen.service)
        chosen.breaker.begin()
        return chosen.take(num_tokens), workers.drafter_bandit.begin(_kind(chosen), greedy=greedy)

    def _verifiers(self, avoid: Collection[Replica]) -> list[Replica]:
        """Those that could take a session of the request."""
        return [
            replica
            for replica in self._workers.usable(self._workers.verifiers)
            if replica not in avoid
            and replica.model is not None
            and alike_refusal(self._target, replica.model) is None
            and replica.model.max_context >= self._request.max_length
        ]

    def _short_context(self, replica: Replica) -> Refusal | None:
        max_context = replica.model.max_context if replica.model is not None else 0
        if max_context >= self._request.max_length:
            return None
        return Refusal(f"its context is {max_context} tokens and the request's {self._request.max_length}")

    def _no_drafter(self, refusals: list[Refusal]) -> str:
        if refusals:
            return f"no draft service can be used ({summary(refusals)})"
        refusal = self._workers.drafter_refusal()
        return refusal.text if refusal is not None else "there is no other draft service"


def _kind(replica: Replica) -> Hashable:
    """What replicas of one draft model have in common."""
    return (replica.model.name, replica.model.num_parameters) if replica.model is not None else None
