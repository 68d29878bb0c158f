"""One line that vLLM decides, and the drafters that run ahead of it, one after another."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

from coordinator.drafter_relay import DrafterLinks, DrafterRelay
from coordinator.generation import SPARE_DRAFTERS
from outrider.core.coordinate.session import Session
from outrider.core.protocol.messages import DraftOpen, DraftWindow, EndDrafts, FinishReason, Verdict
from outrider.core.protocol.sampling import SamplingParams
from outrider.vllm.chain import best_chain
from outrider.vllm.limits import Limits


class Vllm:
    """See `Decider` and `Deciders`: the one engine that decides. It reads what it wants of the session's tree."""

    address = "vLLM"

    def __init__(self) -> None:
        self.is_over = False

    @property
    def worker(self) -> Vllm:
        """See `Decider.worker`."""
        return self

    @property
    def has_room(self) -> bool:
        """See `Decider.has_room`."""
        return True

    @property
    def present(self) -> Vllm | None:
        """See `Deciders.present`."""
        return None if self.is_over else self

    async def ready(self) -> Vllm | None:
        """See `Deciders.ready`."""
        return self.present

    def offer(self, command: DraftWindow | EndDrafts) -> None:
        """See `Decider.offer`: there is nobody to be told."""


class DraftedLine:
    """The coordinator's session machine and relay, with vLLM's steps as verdicts. Needs a running event loop."""

    def __init__(
        self, token_ids: Sequence[int], links: DrafterLinks, limits: Limits, on_drafted: Callable[[], None]
    ) -> None:
        """Opens a drafter behind `token_ids`, unless they are more than text: what stands for an image is no token.

        `on_drafted` is called whenever drafts have come.
        """
        self.seen_at = 0.0
        """When a step had it last, by the loop's clock."""
        self._limits = limits
        self._on_drafted = on_drafted
        self._num_offered = 0
        """Length of the chain that the present step verifies."""
        self._has_disappointed = False
        """Whether a step has waited in vain since the last drafts came."""
        self._session = Session(
            token_ids,
            vocab_size=limits.vocab_size,
            max_run_ahead=limits.max_run_ahead,
            drafting=min(token_ids) >= 0 and max(token_ids) < limits.vocab_size and len(token_ids) < limits.max_length,
            num_spare_drafters=SPARE_DRAFTERS,
        )
        self._vllm = Vllm()
        opening = DraftOpen(
            session_id=f"vllm-{uuid.uuid4().hex}",
            token_ids=token_ids,
            num_prompt_tokens=len(token_ids),
            sampling=SamplingParams(),
            max_run_ahead=limits.max_run_ahead,
            tree_width=limits.tree_width,
            max_length=limits.max_length,
            vocab_size=limits.vocab_size,
        )
        self._relay = DrafterRelay(self._session, links, self._vllm, opening)
        self._relay.on_window = lambda drafter, window: self._hear()
        self._relay.open(self._vllm)
        self._relay.start()

    @property
    def is_awaited(self) -> bool:
        """Whether nothing is at hand, and something may be soon: a drafter that is still reading is not waited for."""
        session = self._session
        return (
            session.hears_drafter
            and not session.tree.num_live
            and session.statistics.num_drafted_nodes > 0
            and not self._has_disappointed
        )

    def decide(self, token_ids: Sequence[int], step_ms: float) -> None:
        """A step of vLLM has decided `token_ids`: drafts that it accepted and one token more, or nothing."""
        if not token_ids:
            return
        num_accepted = len(token_ids) - 1
        num_draft_tokens = max(self._num_offered, num_accepted)
        verdict = Verdict(
            position=len(self._session.line),
            token_ids=token_ids,
            num_accepted=num_accepted,
            num_draft_tokens=num_draft_tokens,
            bonus=0 < num_draft_tokens == num_accepted,
            verify_ms=step_ms,
        )
        self._num_offered = 0
        outcome = self._session.on_verdict(verdict)
        if outcome is not None and outcome.commitment is not None:
            self._relay.send(outcome.commitment)

    def chain(self) -> list[int]:
        """The best of what is at hand, as long as the next step may verify."""
        num_left = self._limits.max_length - len(self._session.line) - 1
        chain = best_chain(self._session.tree, min(self._limits.num_speculative_tokens, num_left))
        self._num_offered = len(chain)
        return chain

    def disappoint(self) -> None:
        """A step waited for it in vain: none does again before drafts have come."""
        self._has_disappointed = self._has_disappointed or self.is_awaited

    async def close(self) -> None:
        """The line is over: its drafter frees the slot."""
        self._session.on_stopped(FinishReason.LENGTH)
        self._vllm.is_over = True
        self._relay.close()
        await self._relay.end()

    def _hear(self) -> None:
        self._has_disappointed = False
        self._on_drafted()
