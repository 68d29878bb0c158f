"""The drafter: expands the most promising nodes of all its sessions, step after step. Device thread only."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from torch import Tensor

from draft_service.drafts import DraftEvent
from outrider.core.draft.session import DraftEstimates, DraftSession, choose_expansions
from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.messages import Commitment, DraftOpen
from outrider.core.protocol.tree import Node, path_tokens
from outrider.core.schedule.prefill import prefill_budget
from outrider.core.schedule.queue import Priority
from outrider.engine.engine import STEP_TOKENS_MAX, Engine
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.kv_cache.slots import Slot
from outrider.engine.sample.sampler import Row
from outrider.worker.admission import Admission, num_uncomputed_tokens
from outrider.worker.outbox import Outbox


class Drafting:
    """One session at the drafter."""

    def __init__(self, opening: DraftOpen, outbox: Outbox[DraftEvent]) -> None:
        self.opening = opening
        self.outbox = outbox
        self.deadline = math.inf
        self.state: DraftSession
        """From its admission on."""
        self.token_ids: Sequence[int] = opening.token_ids
        self.priority: Priority
        self.slot: Slot | None = None
        self.is_prefilling = True
        self.has_ended = False
        self.chosen: list[Node] = []
        """The nodes that the present step expands."""
        self.last_step = 0
        """Number of the last step that expanded any."""
        self.finishing = False
        """Whether no more commits will come: the session ends when there is nothing left to draft."""
        self.draft_seconds = 0.0
        """Time in steps that drafted, since the last window."""
        self.drafting_since_ns = 0
        """Wall-clock start of the first of them."""


class Drafter:
    """Steps all sessions that have something worth drafting in one forward pass."""

    def __init__(self, engine: Engine) -> None:
        # Nobody waits for a drafter: its coordinator lets the target decode alone rather than be late.
        self.admission: Admission[Drafting] = Admission(engine, max_queue=0)
        self.session_type = DraftSession
        """What sessions that open from now on are; a benchmark may put another policy here."""
        self.estimates = DraftEstimates()
        """What was learned about the device and the guesses."""
        self._num_steps = 0
        self.relearn()

    def relearn(self) -> None:
        """Measures the time of steps; what was learned of it is void."""
        self.estimates.curve.restart(self.admission.engine.measure())

    def open(self, session: Drafting) -> None:
        """Seats the session, or refuses it."""
        self.admission.enter(session)
        self.admission.admit()
        if session.slot is not None:
            session.state = self.session_type(session.opening, self.estimates)
            session.token_ids = session.state.line.token_ids

    def commit(self, session: Drafting, commitment: Commitment) -> None:
        """Moves the session's line and tree along; a rollback is the same movement."""
        if session.slot is None:
            return
        state = session.state
        num_before = len(state.line)
        try:
            state.commit(commitment)
            if any(not 0 <= token_id < self.admission.engine.vocab_size for token_id in commitment.token_ids):
                raise ProtocolViolationError("a committed token id is beyond the draft model's vocabulary")
        except ProtocolViolationError as violation:
            self.admission.fail(session, violation)
            return
        self.admission.sampler.commit(session.slot.index, state.line.token_ids[num_before:])

    def finish(self, session: Drafting) -> None:
        """No more commits will come: the session drafts on while that is worth it, then ends."""
        session.finishing = True

    def close(self, session: Drafting) -> None:
        """Frees the session's slot, if it still has one."""
        self.admission.dismiss(session)

    def step(self) -> float | None:
        """Sends what commits have made urgent, then expands the most promising nodes of all sessions.

        See `Worker.step`.
        """
        started, started_ns = time.monotonic(), time.time_ns()
        self.admission.admit()
        expanding, prefilling = self.admission.apart(self.admission.sessions)
        assigned = self._assign(prefilling, expanding)
        parts = self._choose(expanding, assigned)
        for session in self.admission.sessions:
            self._send_if_due(session)
        if parts:
            self.admission.run(
                list(parts),
                lambda sessions: self._expand({each: parts[each] for each in sessions}, started, started_ns),
            )
            for session in parts:
                self._send_if_due(session)
        for session in [*expanding, *prefilling]:
            if session.finishing and session not in parts:
                session.outbox.end()
                self.close(session)
        return 0.0 if parts else None

    def _assign(
        self, prefilling: Sequence[Drafting], expanding: Sequence[Drafting]
    ) -> list[tuple[Drafting, int, bool]]:
        """How much of which lines the next step reads. See `Admission.assign`."""
        prefilling = [session for session in prefilling if session.state.best() is not None]
        if not prefilling:
            return self.admission.assign((), 0)
        num_expanding = sum(session.state.best() is not None for session in expanding) or int(bool(expanding))
        return self.admission.assign(prefilling, prefill_budget(self.estimates.curve, num_expanding, STEP_TOKENS_MAX))

    def _choose(self, expanding: list[Drafting], assigned: Sequence[tuple[Drafting, int, bool]]) -> dict[Drafting, int]:
        """Sets what each session expands. Returns who takes part in the next step, who expands before who reads, and
        how much of its line each may feed."""
        self._num_steps += 1
        num_beside = sum(num_tokens for _, num_tokens, _ in assigned)
        expanding.sort(key=lambda session: session.last_step)
        chosen = choose_expansions([session.state for session in expanding], self.estimates.curve, num_beside)
        parts: dict[Drafting, int] = {}
        for session, session.chosen in zip(expanding, chosen, strict=True):
            if session.chosen:
                session.last_step = self._num_steps
                parts[session] = num_uncomputed_tokens(session)  # or less: what was drafted may be held
        for session, num_tokens, to_end in assigned:
            session.chosen = [session.state.take()] if to_end else []
            parts[session] = num_tokens
        return parts

    def _expand(self, parts: Mapping[Drafting, int], step_started: float, step_started_ns: int) -> None:
        """One forward pass of a step that began then, on the monotonic clock and on the wall's."""
        jobs: dict[Drafting, Job] = {}
        for session in parts:
            assert session.slot is not None
            jobs[session] = expansion_job(session.slot, session.state, session.chosen)
        if not self.admission.has_room(jobs.values()):
            staying = self.admission.make_room(jobs)
            for session in jobs.keys() - staying:
                session.state.postpone(session.chosen)
                session.chosen = []
            jobs = {session: jobs[session] for session in staying}
        if not jobs:
            return
        started = time.monotonic()
        output, num_beside = self.admission.feed(jobs, sum(parts[session] for session in jobs))
        rows: list[Row] = []
        complete: list[tuple[Drafting, list[Node], int]] = []
        for session, num_rows in zip(jobs, output.num_rows, strict=True):
            if num_rows is None:
                session.state.postpone(session.chosen)
            else:
                assert session.slot is not None
                complete.append((session, session.chosen, len(rows)))
                rows += [expansion_row(session.slot, session.state, node) for node in session.chosen]
        if rows:
            self._limit_vocabulary(output.logits, complete)
            width = max(session.state.width for session, _, _ in complete)
            token_ids, margins = self.admission.sampler.propose(output.logits, rows, width)
        else:
            token_ids, margins = [], []
        duration = time.monotonic() - step_started
        for session, nodes, first_row in complete:
            if session.draft_seconds == 0.0:
                session.drafting_since_ns = step_started_ns
            session.draft_seconds += duration
            for row, node in enumerate(nodes, first_row):
                session.state.expand(node, token_ids[row], margins[row])
        self.estimates.curve.observe(len(rows) + num_beside, time.monotonic() - started)

    def _limit_vocabulary(self, logits: Tensor, complete: Sequence[tuple[Drafting, list[Node], int]]) -> None:
        """Keeps proposals within the target's vocabulary, which may be padded less than the draft's."""
        for session, nodes, first_row in complete:
            if session.opening.vocab_size < self.admission.engine.vocab_size:
                logits[first_row : first_row + len(nodes), session.opening.vocab_size :] = float("-inf")

    def _send_if_due(self, session: Drafting) -> None:
        now = time.monotonic()
        if session.slot is None or not session.state.is_window_due(now, idle=not session.chosen):
            return
        window = session.state.take_window(session.draft_seconds * 1000.0, now)
        if window is None:
            return
        session.outbox.put(window, session.drafting_since_ns, time.time_ns())
        session.draft_seconds = 0.0


def expansion_job(slot: Slot, state: DraftSession, nodes: Sequence[Node]) -> Job:
    """The job whose logits say what comes below each of `nodes`, one row each in their order.

    The nodes stand in the tree of `state`, the root among them or not; `slot` is the session's own.
    """
    index_of = {state.tree.root: LINE_END}
    parents: list[int] = []
    token_ids: list[int] = []
    for node in nodes:
        path: list[Node] = []
        while node not in index_of:
            path.append(node)
            assert node.parent is not None
            node = node.parent
        index = index_of[node]
        for node in reversed(path):
            parents.append(index)
            token_ids.append(node.token_id)
            index = index_of[node] = len(parents) - 1
    return Job(slot, state.line.token_ids, parents, token_ids, wanted=[index_of[node] for node in nodes])


def expansion_row(slot: Slot, state: DraftSession, node: Node) -> Row:
    """The place of a token below `node`, with the path there from the end of the line of `state` if that matters."""
    return Row(slot.index, node.position + 1, path_tokens(state.tree.root, node) if state.penalized else ())
