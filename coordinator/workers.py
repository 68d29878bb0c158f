"""Both pools as the coordinator knows them: what can be served at present, and by whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import structlog
from tokenizers import Tokenizer

from coordinator.fitting import check_alike, check_pair
from coordinator.pool import Pool
from coordinator.replica import Replica
from coordinator.resolution import Resolve, parse_endpoints, resolve
from outrider.core.coordinate.drafter_bandit import DrafterBandit
from outrider.core.protocol.errors import ModelMismatchError, WorkerUnavailableError
from outrider.core.protocol.messages import ModelInfo
from outrider.rpc.workers import DRAFT_SERVICE, VERIFY_SERVICE, fetch_tokenizer
from outrider.telemetry.metrics import Instruments

_REASONS_MAX = 4
"""Most workers of which a message says why they cannot be used."""

_log = structlog.get_logger()


class Workers:
    """The verifiers and the drafters, and what all of this coordinator's sessions have taught about them."""

    def __init__(
        self,
        verify: str,
        draft: str,
        on_change: Callable[[bool], None],
        instruments: Instruments,
        resolver: Resolve = resolve,
    ) -> None:
        """`verify` and `draft` are lists of addresses as `parse_endpoints` reads them; `draft` may be empty.

        `on_change` is called on the event loop with whether generations are possible, at each change. They are when the
        target is known and the drafters have been asked once or one serves, so that the first request has it.
        """
        self.target: ModelInfo | None = None
        """What the pool of verifiers serves: the model of the first that was known, for as long as one has it."""
        self.drafter_bandit = DrafterBandit()
        self.instruments = instruments
        self._tokenizers: dict[str, Tokenizer] = {}
        """By the identity of the target that each belongs to."""
        self._misfits: dict[str, str] = {}
        """By address: why a worker that serves does not fit the others."""
        self._on_change = on_change

        def on_seats(replica: Replica, change: int) -> None:
            instruments.add_sessions(change, service=replica.service, address=replica.address)

        self.verifiers = Pool(
            VERIFY_SERVICE,
            parse_endpoints(verify),
            admit=self._admit_verifier,
            on_change=self._update,
            on_seats=on_seats,
            resolver=resolver,
        )
        self.drafters = Pool(
            DRAFT_SERVICE,
            parse_endpoints(draft),
            admit=self._admit_drafter,
            on_change=self._update,
            on_seats=on_seats,
            resolver=resolver,
        )

    def start(self) -> None:
        """Begins to watch. Needs a running event loop."""
        self.verifiers.start()
        self.drafters.start()

    async def stop(self) -> None:
        """Ends the watches and closes the channels."""
        await self.verifiers.stop()
        await self.drafters.stop()

    def __iter__(self) -> Iterator[tuple[Replica, str]]:
        """Every worker, verifiers first, and why it gets no sessions, in words; empty if it does."""
        for pool in (self.verifiers, self.drafters):
            for replica in pool:
                yield replica, pool.problem_of(replica) or self._misfits.get(replica.address, "")

    @property
    def draft(self) -> ModelInfo | None:
        """The model of a drafter that can be used at present."""
        usable = self.usable(self.drafters)
        return usable[0].model if usable else None

    @property
    def draft_answered(self) -> bool:
        """Whether a drafter serves, or all have been asked once, or there is none to ask."""
        return self.drafters.has_answered

    def usable(self, pool: Pool) -> Sequence[Replica]:
        """The replicas of a pool that serve and fit."""
        return [replica for replica in pool.serving if replica.address not in self._misfits]

    def require_target(self) -> tuple[ModelInfo, Tokenizer]:
        """The target and its tokenizer. Raises WorkerUnavailableError."""
        if self.target is None:
            raise WorkerUnavailableError(
                f"no verify service serves ({self._reasons(self.verifiers)}); try again when one does"
            )
        return self.target, self._tokenizers[self.target.identity_sha256]

    def draft_problem(self) -> str:
        """Why no drafter can be used at present; empty if one can.

        Raises ModelMismatchError if no drafter of the pool fits the target: that is a mistake to mend, not a state to
        pass.
        """
        if not self.drafters.endpoints:
            return "no draft service is configured"
        if self.usable(self.drafters):
            return ""
        misfits = [self._misfits[replica.address] for replica in self.drafters if replica.address in self._misfits]
        if misfits and len(misfits) == len(list(self.drafters)):
            raise ModelMismatchError(misfits[0])
        return f"no draft service can be used ({self._reasons(self.drafters)})"

    def _reasons(self, pool: Pool) -> str:
        reasons = [
            *pool.problems,
            *(f"{each.address}: {self._misfits[each.address]}" for each in pool if each.address in self._misfits),
        ]
        return summary(reasons) or "none has been found yet"

    async def _admit_verifier(self, replica: Replica, info: ModelInfo) -> None:
        if info.identity_sha256 not in self._tokenizers:
            content = await fetch_tokenizer(replica.channel)
            self._tokenizers[info.identity_sha256] = Tokenizer.from_buffer(content)

    async def _admit_drafter(self, replica: Replica, info: ModelInfo) -> None:
        """Every drafter is welcome; whether it fits depends on the target."""

    def _update(self) -> None:
        """Settles which target is served, and who fits it, and tells."""
        self.target = self._settled_target()
        misfits: dict[str, str] = {}
        for pool, check in ((self.verifiers, check_alike), (self.drafters, check_pair)):
            for replica in pool.serving:
                problem = misfit(check, self.target, replica.model)
                if problem:
                    misfits[replica.address] = problem
                    if problem != self._misfits.get(replica.address):
                        _log.error("worker does not fit", address=replica.address, reason=problem)
        self._misfits = misfits
        known = {replica.model.identity_sha256 for replica in self.verifiers if replica.model is not None}
        self._tokenizers = {identity: each for identity, each in self._tokenizers.items() if identity in known}
        self._on_change(self.target is not None and self.draft_answered)

    def _settled_target(self) -> ModelInfo | None:
        """The present target if anybody serves it, else what the first one serves; with the largest context."""
        models = [replica.model for replica in self.verifiers.serving if replica.model is not None]
        alike = [model for model in models if self.target is not None and not misfit(check_alike, self.target, model)]
        if not alike and models:
            alike = [model for model in models if not misfit(check_alike, models[0], model)]
        return max(alike, key=lambda model: model.max_context, default=None)


def misfit(check: Callable[[ModelInfo, ModelInfo], None], target: ModelInfo | None, model: ModelInfo | None) -> str:
    """What a check of two models says against the second one; empty if nothing, or while one is not known."""
    if target is None or model is None:
        return ""
    try:
        check(target, model)
    except ModelMismatchError as mismatch:
        return str(mismatch)
    return ""


def summary(reasons: Sequence[str]) -> str:
    """Reasons in one line, the first few of them."""
    more = [f"and {len(reasons) - _REASONS_MAX} more"] if len(reasons) > _REASONS_MAX else []
    return "; ".join([*reasons[:_REASONS_MAX], *more])
