"""Routing: which verifier and which drafter the sessions of one request go to, at first and after a loss."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from coordinator.drafter_choice import may_take, take_drafter
from coordinator.fitting import alike_refusal
from coordinator.replica import Replica, Seat
from coordinator.request import GenerationRequest
from coordinator.workers import Workers
from outrider.core.coordinate.drafter_bandit import Trial
from outrider.core.coordinate.drafter_choice import DrafterDemand
from outrider.core.coordinate.placement import place
from outrider.core.protocol.errors import ModelMismatchError, WorkerUnavailableError
from outrider.core.protocol.messages import ModelInfo


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
        self.on_placed: Callable[[str, str, Sequence[str]], None] = lambda service, address, instead_of: None
        """Is told of each session that is placed: a worker's service and address, and the addresses of those before."""

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
            states = [each.replica_state for each in found]
            self._last = found[place(states, num_tokens, num_rounds, self._workers.rng.sample)]
        if avoid:
            self._workers.instruments.count_move(service=self._last.service)
        self._tell_of(self._last, avoid)
        seat = self._last.take(num_tokens)
        seat.can_move = lambda: bool(self._verifiers([seat.replica]))
        return seat

    def drafter(self, num_tokens: int, verifier: Replica, avoid: Collection[Replica] = ()) -> tuple[Seat, Trial]:
        """A seat for a session with a line of `num_tokens` that `verifier` decides, at none of those to `avoid`.

        Also returns the trial that begins for the drafter bandit. Raises WorkerUnavailableError, which says why, if no
        drafter should be used.
        """
        workers, found = self._workers, self._drafters(avoid)
        if not found:
            refusal = workers.drafter_refusal()
            raise WorkerUnavailableError(refusal.text if refusal is not None else "there is no other draft service")
        demand = DrafterDemand(
            num_tokens=num_tokens,
            max_length=self._request.max_length,
            greedy=self._request.sampling.greedy,
            verify_step_ms=verifier.replica_state.step_ms,
        )
        seat, trial = take_drafter(found, workers.drafter_bandit, demand)
        seat.can_move = lambda: any(may_take(other, demand) for other in self._drafters([*avoid, seat.replica]))
        if avoid:
            workers.instruments.count_move(service=seat.replica.service)
        self._tell_of(seat.replica, avoid)
        return seat, trial

    def _tell_of(self, placed_at: Replica, avoid: Collection[Replica]) -> None:
        self.on_placed(placed_at.service, placed_at.address, [each.address for each in avoid])

    def _drafters(self, avoid: Collection[Replica]) -> list[Replica]:
        """Those that serve."""
        return [replica for replica in self._workers.usable(self._workers.drafters) if replica not in avoid]

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
