"""Workers on a virtual clock: production's schedulers, with steps that take as long as told.

Like a device thread, a worker reads what has arrived between its steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

from bench.simulate.clock import Clock
from bench.simulate.memory import AmpleMemory
from outrider.core.draft.session import DraftSession
from outrider.core.propose.ngram import NgramTable
from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.line import Line
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow, Verdict, VerifyFinished, VerifyOpen
from outrider.core.protocol.tree import Node
from outrider.core.schedule.admission import Seated
from outrider.core.schedule.draft_run import Burst, DraftRun, Level
from outrider.core.schedule.draft_scheduler import DraftScheduler
from outrider.core.schedule.draft_step import Drafted, DraftPart, DraftStep, Proposal
from outrider.core.schedule.policy import DraftPolicy, VerifyPolicy
from outrider.core.schedule.step import WaitUntil
from outrider.core.schedule.verify_scheduler import VerifyScheduler
from outrider.core.schedule.verify_step import Decided, VerifyOutcome, VerifyPart, VerifyStep

STEP_TOKENS_MAX = 512
"""Most line tokens in one step: the engine's."""


class Text(Protocol):
    """What the target writes after a prompt, and what a draft guesses of it."""

    @property
    def vocab_size(self) -> int: ...

    def next_token(self, line: Line, node: Node) -> int:
        """The target's choice after `node`, the end of `line` or a guess below it; beyond the text's end anything."""
        ...

    def propose(self, session: DraftSession, nodes: Sequence[Node]) -> Sequence[Proposal]:
        """The draft's guesses below each of `nodes`."""
        ...


class Work:
    """How long each of two workers was busy, and both at once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until = {"draft": 0.0, "verify": 0.0}
        self.busy = {"draft": 0.0, "verify": 0.0}
        self.both = 0.0

    def begin(self, worker: str, seconds: float) -> None:
        """A step begins that takes so long."""
        now = self._clock.now
        self._until[worker] = now + seconds
        self.busy[worker] += seconds
        self.both += max(0.0, min(self._until.values()) - now)


class VirtualWorker(ABC):
    """What verifiers and drafters have in common: commands wait until the present step is over."""

    def __init__(self) -> None:
        self._arrived: list[Callable[[], Iterable[object] | None]] = []
        self._is_busy = self._is_lost = False

    @abstractmethod
    def wake(self) -> None:
        """Reads what has arrived, and steps if that is due."""

    def lose(self) -> None:
        """It is no more: a step that runs tells nothing."""
        self._is_lost = True

    def _read(self, command: Callable[[], Iterable[object] | None]) -> None:
        self._arrived.append(command)
        self.wake()

    def _obey(self) -> None:
        arrived, self._arrived = self._arrived, []
        for command in arrived:
            assert not command(), "an honest peer broke the protocol"

    def _go_on(self) -> None:
        self._is_busy = False
        self.wake()


class VirtualVerifier(VirtualWorker):
    """Steps take `step_seconds` of their number of tokens, and the next one begins `rest` later at the earliest: the
    host needs that long after each step, and the device may compute another one meanwhile if the policy overlaps."""

    def __init__(
        self,
        clock: Clock,
        work: Work,
        texts: Sequence[Text],
        policy: VerifyPolicy,
        step_seconds: Callable[[int], float],
        tell: Callable[[int, Verdict | VerifyFinished | OutriderError], None],
        *,
        rest: float = 0.0,
        memory: AmpleMemory | None = None,
        max_queue: int = 0,
        ngram_table: Callable[[], NgramTable] | None = None,
    ) -> None:
        """Session i is about `texts[i]`, and `tell` hears what it is told. At most `max_queue` wait for `memory`."""
        super().__init__()
        self._clock, self._work, self._texts = clock, work, texts
        self._step_seconds, self._tell, self._rest = step_seconds, tell, rest
        self._memory = memory or AmpleMemory()
        self.scheduler: VerifyScheduler[int] = VerifyScheduler(
            self._memory,
            vocab_size=texts[0].vocab_size,
            eos_token_ids=(),
            step_tokens_max=STEP_TOKENS_MAX,
            max_queue=max_queue,
            ngram_table=ngram_table,
            policy=policy,
        )
        self.steps: list[tuple[set[int], set[int]]] = []
        """For each step who took part, of those who had not ended."""
        self._alarm: object = None
        self._in_flight: deque[tuple[VerifyStep[int], float, float]] = deque()
        """Steps that the device computes or will compute, when each begins, and how long it takes."""
        self._device_free = 0.0

    def open(self, index: int, opening: VerifyOpen) -> None:
        """A session is to be opened at the next `wake`."""
        self._arrived.append(partial(self.scheduler.open, index, opening, self._clock.now))

    def graft(self, index: int, window: DraftWindow) -> None:
        """A window arrives."""
        self._read(partial(self.scheduler.graft, index, window, self._clock.now))

    def end_drafts(self, index: int) -> None:
        """The session gets no drafts any more."""
        self._read(partial(self.scheduler.end_drafts, index))

    def close(self, index: int) -> None:
        """The session is elsewhere."""
        self._read(partial(self.scheduler.close, index))

    def wake(self) -> None:
        """Reads what has arrived, and steps if that is due."""
        if self._is_busy or self._is_lost:
            return
        now = self._clock.now
        self._obey()
        for index, content in self.scheduler.admit(now):
            if isinstance(content, OutriderError):
                self._tell(index, content)
        alarm = self._alarm = object()
        step = self.scheduler.plan(now)
        while isinstance(step, VerifyStep):
            self._begin(step)
            if self.scheduler.policy.overlap is None:
                break
            self.scheduler.launch(step)
            step = self.scheduler.plan(now)
        if self._in_flight:
            self._is_busy = True
            _, started, seconds = self._in_flight[0]
            self._clock.at(max(started + seconds, now), self._end)
        elif isinstance(step, WaitUntil):
            self._clock.at(step.time, lambda: self.wake() if self._alarm is alarm else None)

    def _begin(self, step: VerifyStep[int]) -> None:
        seconds = self._step_seconds(sum(part.num_line_tokens + len(part.nodes) for part in step.parts))
        self.steps.append(({part.session.key for part in step.parts}, set(self.scheduler.sessions)))
        started = max(self._clock.now, self._device_free)
        if started > self._clock.now:
            self._clock.at(started, partial(self._work.begin, "verify", seconds))
        else:
            self._work.begin("verify", seconds)
        self._device_free = started + seconds
        self._in_flight.append((step, started, seconds))

    def _end(self) -> None:
        if self._is_lost:
            return
        step, started, seconds = self._in_flight.popleft()
        choices: list[Sequence[int] | None] = []
        for part in step.parts:
            is_fed = _feed(self._memory, part, step.num_held)
            choices.append(self._choose(part) if is_fed else None)
        for index, content in self.scheduler.settle(step, VerifyOutcome(started, seconds, choices), self._clock.now):
            if isinstance(content, Decided):
                self._tell(index, content.verdict)
            elif isinstance(content, VerifyFinished | OutriderError):
                self._tell(index, content)
        self.scheduler.observe(seconds if self.scheduler.policy.overlap else seconds + self._rest)
        if self._rest:
            self._clock.after(self._rest, self._go_on)
        else:
            self._go_on()

    def _choose(self, part: VerifyPart[int]) -> list[int]:
        state, text = part.session.state, self._texts[part.session.key]
        return [text.next_token(state.line, node) for node in (state.tree.root, *part.nodes)]


class VirtualDrafter(VirtualWorker):
    """Steps take `step_seconds` of their number of expanded nodes, and the next one begins `pause` later; the levels of
    a run take as long, but follow at once."""

    def __init__(
        self,
        clock: Clock,
        work: Work,
        texts: Sequence[Text],
        policy: DraftPolicy,
        step_seconds: Callable[[int], float],
        tell: Callable[[int, DraftWindow | OutriderError], None],
        *,
        pause: float = 0.0,
        memory: AmpleMemory | None = None,
        num_levels_max: int = 1,
        message: float = 0.0,
    ) -> None:
        """Session i is about `texts[i]`, and `tell` hears what it is told. A run has up to `num_levels_max` levels.

        After a step that something was sent of it pauses by `message` more.
        """
        super().__init__()
        self._message, self._has_sent = message, False
        self._clock, self._work, self._texts = clock, work, texts
        self._step_seconds, self._tell, self._pause = step_seconds, tell, pause
        self._num_levels_max = num_levels_max
        self._memory = memory or AmpleMemory()
        self.scheduler: DraftScheduler[int] = DraftScheduler(
            self._memory, vocab_size=texts[0].vocab_size, step_tokens_max=STEP_TOKENS_MAX, policy=policy
        )

    def open(self, index: int, opening: DraftOpen) -> None:
        """A session is to be opened at the next `wake`."""
        self._arrived.append(partial(self._admit, index, opening))

    def commit(self, index: int, commitment: Commitment) -> None:
        """A commitment arrives."""
        self._read(lambda: self.scheduler.commit(index, commitment, self._clock.now))

    def close(self, index: int) -> None:
        """The session needs no drafts any more."""
        self._read(partial(self.scheduler.close, index))

    def wake(self) -> None:
        """Reads what has arrived, and steps if there is anything to draft."""
        if self._is_busy or self._is_lost:
            return
        now = self._clock.now
        self._obey()
        step = self.scheduler.plan(now, self._num_levels_max)
        for index, content in self.scheduler.flush(now):
            self._send(index, content)
        if isinstance(step, DraftStep):
            self._begin(step)
        elif isinstance(step, DraftRun):
            self._is_busy = True
            self._begin_level(step, [], step.burst(now, step.num_levels_max), now)

    def _admit(self, index: int, opening: DraftOpen) -> None:
        self.scheduler.open(index, opening)
        for refused, content in self.scheduler.admit():
            self._send(refused, content)

    def _begin(self, step: DraftStep[int]) -> None:
        num_read = sum(part.num_line_tokens for part in step.parts if part.seated in step.num_held)
        seconds = self._step_seconds(num_read + sum(len(part.nodes) for part in step.parts))
        self._is_busy = True
        self._work.begin("draft", seconds)
        self._clock.after(seconds, partial(self._end, step, seconds))

    def _end(self, step: DraftStep[int], seconds: float) -> None:
        if self._is_lost:
            return
        proposals: list[Sequence[Proposal] | None] = []
        for part in step.parts:
            is_fed = _feed(self._memory, part, step.num_held)
            propose = self._texts[part.session.key].propose
            proposals.append(propose(part.session.state, part.nodes) if is_fed else None)
        events = self.scheduler.settle(step, proposals, self._clock.now)
        self._finish(events, seconds)

    def _begin_level(self, run: DraftRun[int], levels: list[Level], burst: Burst, started: float) -> None:
        """After `levels` of a burst, which began then."""
        chosen: list[list[Node]] = []
        is_over = bool(self._arrived) or self._clock.now - started > burst.seconds or len(levels) == burst.num_levels
        if not (levels and is_over):
            chosen = run.choose()
        num_nodes = sum(map(len, chosen))
        if not num_nodes:
            now = self._clock.now
            self._finish(self.scheduler.settle_run(run, levels, started, now), now - started)
            return
        seconds = self._step_seconds(num_nodes)
        self._work.begin("draft", seconds)
        levels = [*levels, Level(num_nodes, seconds)]
        self._clock.after(seconds, partial(self._end_level, run, levels, burst, started, chosen))

    def _end_level(
        self, run: DraftRun[int], levels: list[Level], burst: Burst, started: float, chosen: Sequence[list[Node]]
    ) -> None:
        for part, nodes in zip(run.parts, chosen, strict=True):
            state = part.session.state
            for node, proposal in zip(nodes, self._texts[part.session.key].propose(state, nodes), strict=True):
                state.expand(node, *proposal)
        self._begin_level(run, levels, burst, started)

    def _finish(self, events: Iterable[tuple[int, object]], seconds: float) -> None:
        self.scheduler.observe(seconds)
        for index, content in events:
            self._send(index, content)
        pause = self._pause + self._message * self._has_sent
        self._has_sent = False
        if pause:
            self._clock.after(pause, self._go_on)
        else:
            self._go_on()

    def _send(self, index: int, content: object) -> None:
        if isinstance(content, Drafted):
            self._has_sent = True
            self._tell(index, content.window)
        elif isinstance(content, OutriderError):
            self._tell(index, content)


def _feed(memory: AmpleMemory, part: VerifyPart[int] | DraftPart[int], prefilling: Collection[Seated[Any]]) -> bool:
    """The step has fed the part's line. Returns whether it is whole now."""
    whole = len(part.session.token_ids)
    held = whole
    if part.seated in prefilling:
        held = min(memory.num_tokens(part.slot) + part.num_line_tokens, whole)
    memory.feed(part.slot, held)
    return held == whole
