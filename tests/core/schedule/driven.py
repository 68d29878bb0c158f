"""Schedulers without a device: a memory that counts, and outcomes that are told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from outrider.core.estimate.step_curve import StepCurve
from outrider.core.protocol.messages import DraftOpen, DraftWindow, VerifyOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.schedule.draft_scheduler import DraftScheduler
from outrider.core.schedule.draft_step import DraftStep
from outrider.core.schedule.verify_scheduler import VerifyScheduler
from outrider.core.schedule.verify_step import VerifyOutcome, VerifyStep

BLOCK_TOKENS = 16
VOCAB_SIZE = 100
TOKEN = 7
"""What the target always chooses."""


class CountedMemory:
    """Slots over a number of blocks that nobody shares; see `Memory`."""

    def __init__(self, num_slots: int = 8, num_blocks: int = 1000) -> None:
        self.num_slots = num_slots
        self._num_blocks = num_blocks
        self._free = list(reversed(range(num_slots)))
        self._held: dict[int, int] = {}
        self.forgotten: list[int] = []
        self.committed: list[tuple[int, list[int]]] = []

    @property
    def num_free_slots(self) -> int:
        return len(self._free)

    @property
    def num_available_blocks(self) -> int:
        return self._num_blocks - sum(map(self.num_blocks, self._held.values()))

    @property
    def is_empty(self) -> bool:
        return not self._held and len(self._free) == self.num_slots

    def feed(self, slot: int, num_tokens: int) -> None:
        """A step has fed the line up to so many tokens."""
        self._held[slot] = num_tokens
        assert self.num_available_blocks >= 0, "the scheduler gave out more than there is"

    def num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // BLOCK_TOKENS)

    def acquire(self, opening: DraftOpen | VerifyOpen) -> int:
        slot = self._free.pop()
        self._held[slot] = 0
        return slot

    def commit(self, slot: int, token_ids: Sequence[int]) -> None:
        self.committed.append((slot, list(token_ids)))

    def release(self, slot: int) -> None:
        del self._held[slot]
        self._free.append(slot)

    def forget(self, slot: int) -> None:
        self.forgotten.append(slot)
        self._held[slot] = 0

    def num_tokens(self, slot: int) -> int:
        return self._held[slot]

    def num_cached_tokens(self, slot: int) -> int:
        return 0

    def num_held_blocks(self, slot: int) -> int:
        return self.num_blocks(self._held[slot])

    def align(self, slot: int, token_ids: Sequence[int]) -> None:
        pass

    def num_missing_blocks(
        self, slot: int | None, token_ids: Sequence[int], num_nodes: int = 0, *, cache_salt: str = ""
    ) -> int:
        held = 0 if slot is None else self.num_held_blocks(slot)
        return self.num_blocks(len(token_ids) + num_nodes) - held


def steady_curve(fixed: float, per_token: float) -> StepCurve:
    """A device that takes so long."""
    curve = StepCurve()
    for num_tokens in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
        curve.observe(num_tokens, fixed + per_token * num_tokens)
    return curve


class VerifierByHand:
    """A verify scheduler, a clock that stands still unless told, and a target that always says the same."""

    def __init__(
        self, memory: CountedMemory | None = None, *, max_queue: int = 100, budget: int = 512, recent: Any = None
    ) -> None:
        self.memory = memory or CountedMemory()
        self.scheduler: VerifyScheduler[str] = VerifyScheduler(
            self.memory,
            vocab_size=VOCAB_SIZE,
            eos_token_ids=(),
            step_tokens_max=budget,
            max_queue=max_queue,
            recent=recent,
        )
        self.scheduler.policy.estimates.curve = steady_curve(1.0, 0.001)
        self.now = 0.0
        self.events: list[tuple[str, Any]] = []

    def open(self, key: str, num_prompt_tokens: int = 4, num_tokens: int = 3, **more: Any) -> None:
        opening = VerifyOpen(
            session_id=key,
            token_ids=range(num_prompt_tokens),
            num_prompt_tokens=num_prompt_tokens,
            sampling=SamplingParams(),
            max_length=num_prompt_tokens + num_tokens,
            ignore_eos=True,
            max_draft_tokens=8,
            **more,
        )
        self.scheduler.open(key, opening, self.now)

    def graft(self, key: str, token_ids: Sequence[int], first_id: int = 1, sent: float = 0.0) -> None:
        """A chain below the line's end, hardly in doubt, which was sent at that time by its drafter's clock."""
        base = len(self.scheduler.sessions[key].token_ids) - 1
        parents = [0, *range(first_id, first_id + len(token_ids) - 1)][: len(token_ids)]
        log_probs = [-0.001] * len(token_ids)
        window = DraftWindow(base, first_id, parents, token_ids, log_probs, draft_ms=1.0, sent_ms=sent * 1000.0)
        self.hear(self.scheduler.graft(key, window, self.now))

    def plan(self) -> Any:
        """What comes next, after letting in who waits."""
        self.hear(self.scheduler.admit(self.now))
        return self.scheduler.plan(self.now)

    def succeed(self, step: VerifyStep[str], seconds: float = 1.0) -> None:
        """The device has done all of the step."""
        started, self.now = self.now, self.now + seconds
        choices: list[list[int] | None] = []
        for part in step.parts:
            line = part.session.token_ids
            held = min(self.memory.num_tokens(part.slot) + part.num_line_tokens, len(line))
            self.memory.feed(part.slot, held)
            choices.append([TOKEN] * (1 + len(part.nodes)) if held == len(line) else None)
        self.hear(self.scheduler.settle(step, VerifyOutcome(started, seconds, choices), self.now))
        self.scheduler.observe(seconds)

    def fail(self, step: VerifyStep[str]) -> None:
        """The forward pass failed: the engine clears the slots."""
        for part in step.parts:
            self.memory.feed(part.slot, 0)
        self.hear(self.scheduler.settle(step, None, self.now))

    def run(self, steps_max: int = 500) -> None:
        """Steps until there is nothing to do."""
        for _ in range(steps_max):
            plan = self.plan()
            if plan is None:
                return
            if isinstance(plan, VerifyStep):
                self.succeed(plan)
            else:
                self.now = max(self.now, plan.time)
        raise AssertionError("no end in sight")

    def hear(self, events: Iterable[tuple[str, Any]]) -> None:
        self.events += [(key, content) for key, content in events]

    def told(self, key: str, kind: type[Any]) -> list[Any]:
        return [content for each, content in self.events if each == key and isinstance(content, kind)]


class DrafterByHand:
    """A draft scheduler, and a draft model that always proposes the same two tokens."""

    def __init__(self, memory: CountedMemory | None = None) -> None:
        self.memory = memory or CountedMemory()
        self.scheduler: DraftScheduler[str] = DraftScheduler(self.memory, vocab_size=VOCAB_SIZE, step_tokens_max=512)
        self.now = 0.0
        self.events: list[tuple[str, Any]] = []

    def open(self, key: str, num_prompt_tokens: int = 4, *, max_run_ahead: int = 8) -> None:
        opening = DraftOpen(
            session_id=key,
            token_ids=range(num_prompt_tokens),
            num_prompt_tokens=num_prompt_tokens,
            sampling=SamplingParams(),
            max_run_ahead=max_run_ahead,
            tree_width=2,
            max_length=num_prompt_tokens + 100,
            vocab_size=VOCAB_SIZE,
        )
        self.scheduler.open(key, opening)
        self.hear(self.scheduler.admit())

    def plan(self) -> Any:
        self.hear(self.scheduler.admit())
        plan = self.scheduler.plan(self.now)
        self.hear(self.scheduler.flush(self.now))
        return plan

    def succeed(self, step: DraftStep[str], seconds: float = 1.0) -> None:
        self.now += seconds
        for part in step.parts:
            self.memory.feed(part.slot, len(part.session.token_ids))
        self.hear(
            self.scheduler.settle(step, [[([1, 2], [1.0, 1.0])] * len(part.nodes) for part in step.parts], self.now)
        )
        self.scheduler.observe(seconds)

    def fail(self, step: DraftStep[str]) -> None:
        for part in step.parts:
            self.memory.feed(part.slot, 0)
        self.hear(self.scheduler.settle(step, None, self.now))

    def run(self) -> None:
        while isinstance(plan := self.plan(), DraftStep):
            self.succeed(plan)

    def hear(self, events: Iterable[tuple[str, Any]]) -> None:
        self.events += [(key, content) for key, content in events]

    def told(self, key: str, kind: type[Any]) -> list[Any]:
        return [content for each, content in self.events if each == key and isinstance(content, kind)]
