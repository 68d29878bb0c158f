"""The drafter's scheduler: which nodes of all sessions the next step expands, and when what was drafted is sent.

A driver tells it what happens (`open`, `commit`, `finish`, `close`), then asks in turn who was let in (`admit`), what
the device is to do (`plan`), and what is to be sent meanwhile (`flush`); it runs the step, and tells what came out
(`settle`), or the run (`settle_run`). All times are in seconds, by any clock that only rises.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic

from outrider.core.draft.expansions import choose_expansions
from outrider.core.draft.session import DraftSession
from outrider.core.draft.windows import due
from outrider.core.propose.constraint import Constraint
from outrider.core.protocol.errors import OutriderError, ProtocolViolationError, StepFailedError
from outrider.core.protocol.messages import Commitment, DraftOpen, Opened
from outrider.core.protocol.tree import Node
from outrider.core.schedule.admission import Admission, Seated
from outrider.core.schedule.draft_run import DraftRun, Level, compose_run
from outrider.core.schedule.draft_step import Drafted, Drafting, DraftOutcome, DraftPart, DraftStep, Proposal
from outrider.core.schedule.memory import Memory
from outrider.core.schedule.policy import DraftPolicy
from outrider.core.schedule.prefill import prefill_budget
from outrider.core.schedule.step import Event, KeyT, WaitUntil
from outrider.core.schedule.subtree import subtree


class DraftScheduler(Generic[KeyT]):
    """Expands the most promising nodes of all sessions together, and prefills the lines of others beside them."""

    def __init__(
        self, memory: Memory, *, vocab_size: int, step_tokens_max: int, policy: DraftPolicy | None = None
    ) -> None:
        """A step feeds at most `step_tokens_max` tokens of lines; committed token ids are below `vocab_size`."""
        self.policy = policy or DraftPolicy()
        # Nobody waits for a drafter: its coordinator lets the target decode alone rather than be late.
        self.admission: Admission[Drafting[KeyT]] = Admission(memory, max_queue=0)
        self.sessions: dict[KeyT, Drafting[KeyT]] = {}
        """Those that have not ended."""
        self._memory = memory
        self._vocab_size = vocab_size
        self._step_tokens_max = step_tokens_max
        self._num_steps = 0
        self._num_tokens = self._num_cells = 0
        """How many tokens the latest step computed."""
        self._levels: Sequence[Level] = ()
        """Of the latest run, if no step came after it."""
        self._is_step_due = False
        """Whether the latest run came to nothing."""
        self._isolated: deque[Seated[Drafting[KeyT]]] = deque()
        """Those that failed together and are to be tried alone."""
        self._is_stepping = False
        """Whether a step or a run follows."""
        self._seconds = 0.0
        """How long the latest step took, or a level of the latest run: windows may be sent again that much later."""

    def open(self, key: KeyT, opening: DraftOpen, constraint: Constraint | None = None) -> None:
        """Takes a session in, whose line `constraint` has followed: `admit` seats or refuses it."""
        policy = self.policy
        opening = policy.opening(opening)
        state = DraftSession(
            opening, policy.estimates, expands=policy.expands, rhythm=policy.rhythm, constraint=constraint
        )
        self.sessions[key] = session = Drafting(key, opening, state)
        self.admission.join(session)

    def commit(self, key: KeyT, commitment: Commitment, now: float = 0.0) -> Iterable[Event[KeyT, OutriderError]]:
        """Moves a session's line and tree along, at `now`; a rollback is the same movement."""
        session = self.sessions.get(key)
        place = self.admission.place_of(session) if session is not None else None
        if session is None or not isinstance(place, Seated):
            return ()
        num_before = len(session.token_ids)
        try:
            session.state.commit(commitment, now)
            if any(not 0 <= token_id < self._vocab_size for token_id in commitment.token_ids):
                raise ProtocolViolationError("a committed token id is beyond the draft model's vocabulary")
        except ProtocolViolationError as violation:
            self.close(key)
            return (Event(key, violation),)
        self._memory.commit(place.slot, session.token_ids[num_before:])
        return ()

    def finish(self, key: KeyT) -> None:
        """No more commits will come: the session drafts on while that is worth it, then ends."""
        if (session := self.sessions.get(key)) is not None:
            session.is_finishing = True

    def close(self, key: KeyT) -> None:
        """Ends a session; does nothing if it has ended."""
        if (session := self.sessions.pop(key, None)) is not None:
            self.admission.dismiss(session)

    def admit(self) -> Iterable[Event[KeyT, Opened | OutriderError]]:
        """Lets in those for whom there is room, and refuses the others, but for those that were preempted."""
        admitted = self.admission.admit()
        events: list[Event[KeyT, Opened | OutriderError]] = []
        for seated in admitted.seated:
            events.append(Event(seated.session.key, Opened(len(seated.session.opening.token_ids))))
        for queued in admitted.refused:
            del self.sessions[queued.session.key]
            events.append(Event(queued.session.key, self.admission.refusal()))
        return events

    def plan(
        self, now: float, num_levels_max: int = 1, *, expands_lines: bool = True
    ) -> DraftStep[KeyT] | DraftRun[KeyT] | WaitUntil | None:
        """What to do next; None: nothing before something happens. Who can make runs names the most levels of one, and
        whether it can begin one at the end of a line."""
        planned = self._plan(now, num_levels_max, expands_lines)
        self._is_stepping = isinstance(planned, DraftStep | DraftRun)
        return planned

    def _plan(
        self, now: float, num_levels_max: int, expands_lines: bool
    ) -> DraftStep[KeyT] | DraftRun[KeyT] | WaitUntil | None:
        while self._isolated:
            seated = self._isolated.popleft()
            seated.session.part = None
            if seated in self.admission.seated and (step := self._compose([seated], now)) is not None:
                return step
        for seated in self.admission.seated:
            seated.session.part = None
        run = self._compose_run(num_levels_max, expands_lines) if num_levels_max > 1 else None
        return run or self._compose(self.admission.seated, now)

    def flush(self, now: float) -> Iterator[Event[KeyT, Drafted | None]]:
        """After `plan`: what commits have made urgent to send, and the end of those who have no more to draft."""
        yield from self._windows(now)
        for session in list(self.sessions.values()):
            if session.is_finishing and session.part is None and self._is_seated(session):
                self.close(session.key)
                yield Event(session.key, None)

    def settle(
        self, step: DraftStep[KeyT], outcome: DraftOutcome | None, now: float
    ) -> Iterable[Event[KeyT, Drafted | OutriderError]]:
        """What a step's outcome adds to the trees, and what is to be sent of it. None: it failed; then each session is
        tried alone, and if it was alone, ended. Nothing else but `flush` is called between its `plan` and this."""
        if outcome is None:
            return self._fail(step)
        self._levels, self._is_step_due = (), False
        complete = [part for part, proposals in zip(step.parts, outcome, strict=True) if proposals is not None]
        num_beside = self.admission.observe_prefill(step.num_held, [part.seated for part in complete])
        self._num_tokens = sum(len(part.nodes) + part.session.state.num_uncomputed for part in complete) + num_beside
        self._num_cells = sum(step.num_held.get(part.seated, len(part.session.token_ids)) for part in step.parts)
        for part, proposals in zip(step.parts, outcome, strict=True):
            session = part.session
            if proposals is None:
                session.state.postpone(part.nodes)
                continue
            session.draft_for(step.started, now)
            rows_of: dict[Node, list[Proposal]] = {}
            for node, proposal in zip(part.nodes, proposals, strict=True):
                rows_of.setdefault(node, []).append(proposal)
            for node, ((token_ids, confidences), *ahead) in rows_of.items():
                session.state.expand(node, token_ids, confidences, ahead)
        return list(self._windows(now))

    def settle_run(
        self, run: DraftRun[KeyT], levels: Sequence[Level] | None, started: float, now: float
    ) -> Iterable[Event[KeyT, Drafted | OutriderError]]:
        """What is to be sent of a burst of these levels, whose nodes are in the trees; it began at `started`. None: it
        failed, and the run is over; then each session goes on with a step alone."""
        self._levels, self._is_step_due = levels or (), not levels
        if levels is None:
            self._isolated.extend(part.seated for part in run.parts)
            return ()
        if levels:
            run.settle(levels)
        for part in run.parts:
            part.session.draft_for(started, now)
        return list(self._windows(now))

    def observe(self, seconds: float) -> None:
        """What was settled last took so long, its settling included: each node costs time there as well."""
        curve = self.policy.estimates.curve.at(self._num_cells)
        self._seconds = seconds / (len(self._levels) or 1)
        if not self._levels:
            curve.observe(self._num_tokens, seconds)
            return
        beside = (seconds - sum(level.seconds for level in self._levels)) / len(self._levels)
        for level in self._levels:
            curve.observe(level.num_nodes, level.seconds + beside)

    def _compose_run(self, num_levels_max: int, expands_lines: bool) -> DraftRun[KeyT] | None:
        """A run for all who are seated, if it needs no prefill and nobody's memory."""
        expanding, prefilling = self.admission.apart(self.admission.seated)
        if prefilling or self._is_step_due or self.policy.sends_at_once:
            return None
        expanding.sort(key=lambda seated: seated.session.last_step)
        curve, in_turn = self.policy.estimates.curve, self.policy.in_turn
        run = compose_run(expanding, curve, num_levels_max, expands_lines=expands_lines, in_turn=in_turn)
        if run is None or not self.admission.has_room({part.seated: part.num_nodes_max for part in run.parts}):
            return None
        self._num_steps += 1
        for part in run.parts:
            part.session.part = part
            part.session.last_step = self._num_steps
        return run

    def _compose(self, sessions: Iterable[Seated[Drafting[KeyT]]], now: float) -> DraftStep[KeyT] | WaitUntil | None:
        """One step for those of `sessions` that expand nodes and, as far as it has time for that, those who prefill."""
        admission = self.admission
        expanding, prefilling = admission.apart(sessions)
        curve = self.policy.estimates.curve.at(sum(len(seated.session.token_ids) for seated in expanding))
        prefilling = [seated for seated in prefilling if seated.session.state.best() is not None]
        budget = 0
        if prefilling:
            num_expanding = sum(seated.session.state.best() is not None for seated in expanding) or int(bool(expanding))
            waiting = len(prefilling) / max(len(expanding), 1)
            budget = prefill_budget(curve, num_expanding, self._step_tokens_max, waiting)
        chunks = admission.assign(prefilling, budget)
        self._num_steps += 1
        expanding.sort(key=lambda seated: seated.session.last_step)
        num_beside = sum(chunk.num_tokens for chunk in chunks)
        num_beside += sum(seated.session.state.num_uncomputed for seated in expanding)
        # One place a pass: who completes its line expands its end, and that alone is there to be expanded.
        completing = [chunk.seated for chunk in chunks if chunk.completes and self.policy.mask_token_id is not None]
        states = [seated.session.state for seated in (*expanding, *completing)]
        num_beside -= len(completing)  # their last tokens are counted as what they expand
        chosen = dict(zip(states, choose_expansions(states, curve, num_beside), strict=True))
        parts: list[DraftPart[KeyT]] = []
        for seated in expanding:
            if nodes := chosen[seated.session.state]:
                seated.session.last_step = self._num_steps
                # It feeds so many tokens, or fewer: what was drafted may be held.
                parts.append(self._part(seated, nodes, admission.num_uncomputed_tokens(seated)))
        for chunk in chunks:
            state = chunk.seated.session.state
            nodes = chosen[state] if state in chosen else [state.take()] if chunk.completes else []
            parts.append(self._part(chunk.seated, nodes, chunk.num_tokens))
        for part in parts:
            part.session.part = part
        num_nodes = {part.seated: len(part.subtree.token_ids) for part in parts}
        if not admission.has_room(num_nodes):
            staying = admission.make_room(num_nodes)
            for part in parts:
                if part.seated not in staying:
                    part.session.state.postpone(part.nodes)
                    part.session.part = part._replace(nodes=[])
            parts = [part for part in parts if part.seated in staying]
            if not parts:
                return WaitUntil(now)  # those who stay may have something to draft yet
        if not parts:
            return None
        num_held = {part.seated: self._memory.num_tokens(part.slot) for part in parts if part.seated.is_prefilling}
        return DraftStep(parts, now, num_held)

    def _part(self, seated: Seated[Drafting[KeyT]], nodes: list[Node], num_line_tokens: int) -> DraftPart[KeyT]:
        distinct = list(dict.fromkeys(nodes))
        if len(distinct) < len(nodes):
            num_masks = Counter(nodes)
            nodes = distinct + [node for node in distinct for _ in range(num_masks[node] - 1)]
        root = seated.session.state.tree.root
        return DraftPart(seated, nodes, subtree(root, nodes, self.policy.mask_token_id), num_line_tokens)

    def _is_seated(self, session: Drafting[KeyT]) -> bool:
        return self.admission.place_of(session) in self.admission.seated

    def send_all(self, now: float) -> Iterator[Event[KeyT, Drafted]]:
        """In turn with a verifier: all that was drafted, before it goes on."""
        for session in self.sessions.values():
            if (drafted := self._drafted(session, now)) is not None:
                yield drafted

    def _windows(self, now: float) -> Iterator[Event[KeyT, Drafted]]:
        """What is worth sending now, of all sessions. If nothing follows after which it could be sent, that is all."""
        if self.policy.in_turn:
            return
        sessions = list(self.sessions.values())
        seconds = self._seconds if self._is_stepping and not self.policy.sends_at_once else math.inf
        worths = [
            session.state.window_worth(now, math.inf if session.is_finishing else seconds) for session in sessions
        ]
        for session in map(sessions.__getitem__, due(worths)):
            if (drafted := self._drafted(session, now)) is not None:
                yield drafted

    def _drafted(self, session: Drafting[KeyT], now: float) -> Event[KeyT, Drafted] | None:
        window = session.state.take_window(session.draft_seconds * 1000.0, now)
        if window is None:
            return None
        session.draft_seconds = 0.0
        return Event(session.key, Drafted(window, session.drafting_since))

    def _fail(self, step: DraftStep[KeyT]) -> Iterable[Event[KeyT, OutriderError]]:
        for part in step.parts:
            part.session.state.postpone(part.nodes)
        if len(step.parts) > 1:
            self._isolated.extend(part.seated for part in step.parts)
            return ()
        key = step.parts[0].session.key
        self.close(key)
        return (Event(key, StepFailedError("the forward pass failed for this session; see the worker's log")),)
