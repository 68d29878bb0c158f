"""Workers: the pools of verifiers and drafters, the target that they serve, and which of them fit it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence

import tokenizers

from coordinator.chat.template import ChatTemplate
from coordinator.fitting import alike_refusal, pair_refusal
from coordinator.pool import Connect, Pool
from coordinator.replica import Replica
from coordinator.resolution import Resolve, parse_endpoints, resolve
from coordinator.tokenizer import TargetTokenizer
from outrider.core.coordinate.drafter_bandit import DrafterBandit
from outrider.core.coordinate.liveness import SILENCE_SECONDS
from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.core.protocol.messages import ModelInfo
from outrider.core.protocol.refusal import Refusal
from outrider.rpc.worker_client import DRAFT_SERVICE, VERIFY_SERVICE
from outrider.telemetry.metrics import Instruments

_REASONS_MAX = 4
"""Most workers of which a message says why they cannot be used."""


class Workers:
    """The verifiers and the drafters, and what this coordinator's sessions have taught about their models."""

    def __init__(
        self,
        verify: str,
        draft: str,
        instruments: Instruments,
        connect: Connect,
        resolver: Resolve = resolve,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        """`verify` and `draft` are lists of addresses as `parse_endpoints` reads them; `draft` may be empty.

        `connect` makes the client of each worker; for `silence_seconds` see `Replica`.
        """
        self.target: ModelInfo | None = None
        """The model that the verifiers serve: that of the first one found, for as long as one of them serves it."""
        self.drafter_bandit = DrafterBandit()
        self.rng = random.Random()
        """Draws the verifiers that a session is placed among."""
        self.instruments = instruments
        self._tokenizers: dict[str, tuple[TargetTokenizer, ChatTemplate]] = {}
        """By the identity of the target that they belong to."""
        self._misfits: dict[str, Refusal] = {}
        """By address: why a worker that serves does not fit the others."""
        self._on_change: Callable[[bool], None] = lambda ready: None

        def on_seats(replica: Replica, change: int) -> None:
            instruments.add_sessions(change, service=replica.service, address=replica.address)

        self.verifiers = Pool(
            VERIFY_SERVICE,
            parse_endpoints(verify),
            admit=self._admit_verifier,
            on_change=self._update,
            on_seats=on_seats,
            connect=connect,
            resolver=resolver,
            silence_seconds=silence_seconds,
        )
        self.drafters = Pool(
            DRAFT_SERVICE,
            parse_endpoints(draft),
            admit=self._admit_drafter,
            on_change=self._update,
            on_seats=on_seats,
            connect=connect,
            resolver=resolver,
            silence_seconds=silence_seconds,
        )

    async def watch(self, on_change: Callable[[bool], None]) -> None:
        """Watches all workers until it is cancelled.

        At each change `on_change` is called with whether generations are possible. They are when the target is known,
        and the drafters have been asked once or one serves, so that the first request has it.
        """
        self._on_change = on_change
        self.verifiers.start()
        self.drafters.start()
        try:
            await asyncio.Event().wait()  # until this task is cancelled
        finally:
            await self.verifiers.stop()
            await self.drafters.stop()

    def __iter__(self) -> Iterator[tuple[Replica, Refusal | None]]:
        """Every worker, verifiers first, and why it gets no sessions; None if it does."""
        for pool in (self.verifiers, self.drafters):
            for replica in pool:
                yield replica, pool.refusal_of(replica) or self._misfits.get(replica.address)

    @property
    def draft(self) -> ModelInfo | None:
        """The model of a drafter that can be used at present."""
        usable = self.usable(self.drafters)
        return usable[0].model if usable else None

    @property
    def draft_answered(self) -> bool:
        """Whether a drafter serves, or all have been asked once, or none is configured."""
        return self.drafters.has_answered

    def usable(self, pool: Pool) -> Sequence[Replica]:
        """The replicas of a pool that serve and fit."""
        return [replica for replica in pool.serving if replica.address not in self._misfits]

    def require_target(self) -> tuple[ModelInfo, TargetTokenizer]:
        """The target and its tokenizer. Raises WorkerUnavailableError."""
        if self.target is None:
            raise WorkerUnavailableError(
                f"no verify service serves ({self._reasons(self.verifiers)}); try again when one does"
            )
        return self.target, self._tokenizers[self.target.identity_sha256][0]

    def require_chat_template(self) -> ChatTemplate:
        """What makes prompts of conversations with the target. Raises WorkerUnavailableError."""
        return self._tokenizers[self.require_target()[0].identity_sha256][1]

    def drafter_mismatch(self) -> Refusal | None:
        """Why no drafter of the pool ever fits the target; None if one does, or may. The operator must mend it."""
        drafters = list(self.drafters)
        misfits = [self._misfits[replica.address] for replica in drafters if replica.address in self._misfits]
        return misfits[0] if misfits and len(misfits) == len(drafters) else None

    def drafter_refusal(self) -> Refusal | None:
        """Why no drafter can be used at present; None if one can."""
        if not self.drafters.endpoints:
            return Refusal("no draft service is configured")
        if self.usable(self.drafters):
            return None
        return self.drafter_mismatch() or Refusal(f"no draft service can be used ({self._reasons(self.drafters)})")

    def _reasons(self, pool: Pool) -> str:
        misfits = [
            Refusal(f"{each.address}: {self._misfits[each.address]}") for each in pool if each.address in self._misfits
        ]
        return summary([*pool.refusals, *misfits]) or "none has been found yet"

    async def _admit_verifier(self, replica: Replica, info: ModelInfo) -> Refusal | None:
        if info.identity_sha256 not in self._tokenizers:
            handed = await replica.client.fetch_tokenizer()
            # In a thread: a large vocabulary takes seconds.
            tokenizer = await asyncio.to_thread(_parsed, handed.json)
            if isinstance(tokenizer, Refusal):
                return tokenizer
            chat_template = ChatTemplate(handed.chat_templates, handed.special_tokens)
            self._tokenizers[info.identity_sha256] = tokenizer, chat_template
        return None

    async def _admit_drafter(self, replica: Replica, info: ModelInfo) -> Refusal | None:
        """Admits every drafter; whether it fits depends on the target."""

    def _update(self) -> None:
        """Settles which target is served and which workers fit it, and reports the change."""
        self.target = self._settled_target()
        misfits: dict[str, Refusal] = {}
        for pool, refuse in ((self.verifiers, alike_refusal), (self.drafters, pair_refusal)):
            for replica in pool.serving:
                if self.target is None or replica.model is None:
                    continue
                misfit = refuse(self.target, replica.model)
                if misfit is not None:
                    misfits[replica.address] = misfit
                    if misfit != self._misfits.get(replica.address):
                        replica.log.error("worker does not fit", reason=misfit.text)
        self._misfits = misfits
        known = {replica.model.identity_sha256 for replica in self.verifiers if replica.model is not None}
        self._tokenizers = {identity: each for identity, each in self._tokenizers.items() if identity in known}
        self._on_change(self.target is not None and self.draft_answered)

    def _settled_target(self) -> ModelInfo | None:
        """The present target while a verifier serves it, else the first verifier's; with the largest context.

        It is batch invariant, and drafts for itself, if all verifiers that serve it are and do.
        """
        models = [replica.model for replica in self.verifiers.serving if replica.model is not None]
        alike = [model for model in models if self.target is not None and alike_refusal(self.target, model) is None]
        if not alike and models:
            alike = [model for model in models if alike_refusal(models[0], model) is None]
        if not alike:
            return None
        largest = max(alike, key=lambda model: model.max_context)
        return largest._replace(
            batch_invariant=all(model.batch_invariant for model in alike),
            draft_model=largest.draft_model if all(model.draft_model for model in alike) else "",
        )


def summary(refusals: Sequence[Refusal]) -> str:
    """Reasons in one line, the first few of them."""
    more = [f"and {len(refusals) - _REASONS_MAX} more"] if len(refusals) > _REASONS_MAX else []
    return "; ".join([*(refusal.text for refusal in refusals[:_REASONS_MAX]), *more])


def _parsed(content: bytes) -> TargetTokenizer | Refusal:
    try:
        return TargetTokenizer(tokenizers.Tokenizer.from_buffer(content))
    except BaseException as error:  # the parser, written in Rust, also panics, with an error that is no Exception
        return Refusal(
            f"its tokenizer.json cannot be parsed by tokenizers {tokenizers.__version__} ({error}); install the "
            "release of tokenizers that wrote it beside the coordinator, or serve another model"
        )
