"""One request's way through the pools: which workers its sessions go to, and where they turn when one is lost."""

from __future__ import annotations

from collections.abc import Collection, Hashable

from coordinator.fitting import check_alike
from coordinator.replica import Replica, Seat
from coordinator.request import GenerationRequest
from coordinator.workers import Workers, misfit, summary
from outrider.core.coordinate.drafter_bandit import Trial
from outrider.core.coordinate.placement import DrafterCandidate, choose_drafter, choose_verifier, overload
from outrider.core.protocol.errors import ModelMismatchError, WorkerUnavailableError
from outrider.core.protocol.messages import ModelInfo


class Route:
    """Shared by all completions of a request, so that one verifier reads their prompt once."""

    def __init__(self, workers: Workers, request: GenerationRequest, target: ModelInfo) -> None:
        """Raises ModelMismatchError if drafts are wanted and no drafter of the pool fits."""
        if request.speculate:
            workers.draft_problem()
        self._workers = workers
        self._request = request
        self._target = target
        self._last: Replica | None = None
        """The verifier that was chosen last."""

    def verifier(self, num_tokens: int, avoid: Collection[Replica] = ()) -> Seat:
        """A seat for a session with a line of `num_tokens`, at none of those to `avoid`.

        Raises WorkerUnavailableError if no verifier is left.
        """
        found = [
            replica
            for replica in self._workers.usable(self._workers.verifiers)
            if replica not in avoid
            and not misfit(check_alike, self._target, replica.model)
            and _max_context(replica) >= self._request.max_length
        ]
        if not found:
            raise WorkerUnavailableError("no verify service is left that could take the request; try again later")
        # Another completion needs no more room for the prompt: only a full house sends it elsewhere.
        if self._last not in found or self._last.replica_state.lack(0):
            num_rounds = self._request.max_length - num_tokens
            self._last = found[choose_verifier([each.replica_state for each in found], num_tokens, num_rounds)]
        if avoid:
            self._workers.instruments.count_move(service=self._last.service)
        return self._last.take(num_tokens)

    def drafter(self, num_tokens: int, verifier: Replica, avoid: Collection[Replica] = ()) -> tuple[Seat, Trial]:
        """A seat for a session with a line of `num_tokens` that `verifier` decides, at none of those to `avoid`.

        With the trial of its model that begins. Raises WorkerUnavailableError, which says why, if no drafter is worth
        it.
        """
        workers, greedy = self._workers, self._request.sampling.greedy
        verify_step_ms = verifier.replica_state.step_ms
        found: list[Replica] = []
        candidates: list[DrafterCandidate] = []
        reasons: list[str] = []
        for replica in workers.usable(workers.drafters):
            if replica in avoid:
                continue
            replica_state = replica.replica_state
            reason = (
                overload(replica_state, num_tokens, verify_step_ms)
                if _max_context(replica) >= self._request.max_length
                else f"its context is {_max_context(replica)} tokens and the request's {self._request.max_length}"
            )
            if reason:
                reasons.append(f"{replica.address}: {reason}")
            else:
                found.append(replica)
                worth = workers.drafter_bandit.worth(_kind(replica), greedy=greedy)
                candidates.append(DrafterCandidate(replica_state, worth, replica.num_failures))
        if not found:
            raise WorkerUnavailableError(self._no_drafter(reasons))
        chosen = found[choose_drafter(candidates, verify_step_ms)]
        if avoid:
            workers.instruments.count_move(service=chosen.service)
        return chosen.take(num_tokens), workers.drafter_bandit.begin(_kind(chosen), greedy=greedy)

    def _no_drafter(self, reasons: list[str]) -> str:
        if reasons:
            return f"no draft service can be used ({summary(reasons)})"
        try:
            return self._workers.draft_problem() or "no other draft service is there"
        except ModelMismatchError as mismatch:
            return str(mismatch)


def _max_context(replica: Replica) -> int:
    return replica.model.max_context if replica.model is not None else 0


def _kind(replica: Replica) -> Hashable:
    """What replicas of one draft model have in common."""
    return (replica.model.name, replica.model.num_parameters) if replica.model is not None else None
