"""The verifier: drives the rounds of all its sessions from their mirrors of the tree. Device thread only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from outrider.core.errors import ProtocolViolationError
from outrider.core.messages import Opened, Verdict, VerifyFinished, VerifyOpen, Window
from outrider.core.selection import most_probable
from outrider.core.tree import Node
from outrider.core.validation import RUN_AHEAD_MAX
from outrider.core.verifying import VerifyKnowledge, VerifySession
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.sampling import Row
from outrider.engine.slots import Slot
from outrider.worker.outbox import Outbox
from outrider.worker.roster import Roster

VerifyEvent = Opened | Verdict | VerifyFinished


class Verification:
    """One session at the verifier."""

    def __init__(self, opening: VerifyOpen, outbox: Outbox[VerifyEvent]) -> None:
        self.opening = opening
        self.outbox = outbox
        self.expect_drafts = opening.expect_drafts
        self.state: VerifySession
        self.slot: Slot | None = None
        self.last_verdict = 0.0
        """When the last verdict was given (or the session opened), on the monotonic clock."""
        self.go_at = 0.0
        """When the next round starts at the latest."""
        self.stirred = False
        """Whether something happened since `go_at` was set."""
        self.has_read_prompt = False
        self.num_stale_nodes = 0


class _Step(NamedTuple):
    """A forward pass and its choice."""

    logits: Tensor
    """[R, V]."""
    started_ns: int
    seconds: float
    chance_min: float
    """See `Verdict`."""


class Verifier:
    """Steps all sessions whose next round is due in one forward pass."""

    def __init__(self, engine: Engine, eos_token_ids: Sequence[int]) -> None:
        self._eos_token_ids = eos_token_ids
        self._roster: Roster[Verification] = Roster(engine)
        self.session_type = VerifySession
        """What sessions that open from now on are; a benchmark may put another policy here."""
        self.knowledge = VerifyKnowledge()
        """What was learned about the device and the drafts."""
        self.knowledge.curve.restart(engine.measure())

    def adopt(self, package: Path) -> None:
        """From now on runs a compiled forward pass; what was learned of the time of steps is void."""
        self._roster.engine.adopt(package)
        self.knowledge.curve.restart(self._roster.engine.measure())

    def open(self, session: Verification) -> None:
        """Gives the session a slot, or fails it."""
        if not self._roster.admit(session, time.time_ns()):
            return
        session.state = self.session_type(
            session.opening,
            vocab_size=self._roster.engine.vocab_size,
            eos_token_ids=self._eos_token_ids,
            max_live_nodes=RUN_AHEAD_MAX,
            knowledge=self.knowledge,
        )
        session.last_verdict = time.monotonic()

    def graft(self, session: Verification, window: Window, arrived: float) -> None:
        """Adds draft nodes that arrived at `arrived`, on the monotonic clock, maybe while a step was running."""
        if session.slot is None:
            return
        session.expect_drafts = True
        try:
            session.num_stale_nodes += session.state.graft(window, arrived).num_stale
        except ProtocolViolationError as violation:
            self._roster.fail(session, violation)
            return
        session.stirred = True

    def end_drafts(self, session: Verification) -> None:
        """No drafts will come: never wait for any."""
        session.expect_drafts = False
        session.go_at = 0.0

    def close(self, session: Verification) -> None:
        """Frees the session's slot, if it still has one."""
        self._roster.dismiss(session)

    def step(self) -> float | None:
        """One round for each session that is due. See `Worker.step`."""
        sessions = self._roster.sessions
        if not sessions:
            return None
        for session in sessions:
            if session.stirred:
                session.stirred = False
                self._reconsider(session)
        now = time.monotonic()
        earliest = min(session.go_at for session in sessions)
        if earliest > now:
            return earliest - now
        # Whoever would become due during this step goes along: waiting until it ends would cost more than drafts bring.
        missed = now + self.knowledge.curve.seconds(len(sessions))
        self._roster.run([session for session in sessions if session.go_at <= missed], self._round)
        return 0.0

    def _round(self, sessions: Sequence[Verification]) -> None:
        selection = most_probable([session.state.candidates for session in sessions], self.knowledge.curve)
        chosen = selection.nodes
        started, started_ns = time.monotonic(), time.time_ns()
        for session, nodes in zip(sessions, chosen, strict=True):
            session.state.begin(nodes, started)
        jobs = [_job(session, nodes) for session, nodes in zip(sessions, chosen, strict=True)]
        output = self._roster.engine.step(jobs)
        rows: list[Row] = []
        complete: list[tuple[Verification, list[Node], int]] = []
        for session, nodes, num_rows in zip(sessions, chosen, output.num_rows, strict=True):
            if num_rows is not None:
                complete.append((session, nodes, len(rows)))
                rows.extend(_rows(session, nodes))
        if not complete:
            return
        choices = self._roster.sampler.choose(output.logits, rows)
        duration = time.monotonic() - started
        # A target that runs alone has the machine to itself: its steps tell nothing of those beside a drafter.
        drafts = any(session.expect_drafts for session in sessions)
        if drafts and all(session.has_read_prompt for session in sessions):
            self.knowledge.curve.observe(len(rows), duration)
        for session, nodes, first_row in complete:
            session.has_read_prompt = True
            wait_ms = (started - session.last_verdict) * 1000.0
            step = _Step(output.logits, started_ns, duration, selection.chance_min)
            self._decide(session, nodes, choices[first_row : first_row + 1 + len(nodes)], first_row, step, wait_ms)

    def _decide(
        self,
        session: Verification,
        nodes: list[Node],
        choices: Sequence[int],
        first_row: int,
        step: _Step,
        wait_ms: float,
    ) -> None:
        assert session.slot is not None
        session.last_verdict = time.monotonic()
        decision = session.state.decide(nodes, choices, session.last_verdict)
        self._roster.sampler.commit(session.slot.index, decision.token_ids)
        num_logprobs = session.opening.num_logprobs
        logprobs = (
            self._roster.sampler.logprobs(
                step.logits[[first_row + row for row in decision.rows]], decision.token_ids, num_logprobs
            )
            if num_logprobs is not None
            else ()
        )
        verdict = Verdict(
            position=decision.position,
            token_ids=decision.token_ids,
            num_accepted=decision.num_accepted,
            num_draft_tokens=len(nodes),
            bonus=decision.bonus,
            num_stale_nodes=session.num_stale_nodes,
            verify_ms=step.seconds * 1000.0,
            wait_ms=max(wait_ms, 0.0),
            chance_min=step.chance_min,
            logprobs=logprobs,
        )
        session.num_stale_nodes = 0
        ended_ns = time.time_ns()
        session.outbox.put(verdict, step.started_ns, ended_ns)
        if decision.finish_reason is not None:
            session.outbox.put(VerifyFinished(decision.finish_reason), ended_ns, ended_ns)
            session.outbox.end()
            self.close(session)
            return
        session.stirred = True

    def _reconsider(self, session: Verification) -> None:
        """Sets when the session's next round starts, by what is at hand and what may come."""
        now = time.monotonic()
        session.go_at = now + session.state.wait(now) if session.expect_drafts else 0.0


def _job(session: Verification, nodes: Sequence[Node]) -> Job:
    assert session.slot is not None
    index_of = {id(session.state.tree.root): LINE_END} | {id(node): index for index, node in enumerate(nodes)}
    return Job(
        slot=session.slot,
        line=session.state.line.token_ids,
        parents=[index_of[id(node.parent)] for node in nodes],
        token_ids=[node.token_id for node in nodes],
        wanted=range(LINE_END, len(nodes)),
    )


def _rows(session: Verification, nodes: Sequence[Node]) -> list[Row]:
    assert session.slot is not None
    slot = session.slot.index
    root = session.state.tree.root
    path_of: dict[int, tuple[int, ...]] = {id(root): ()}
    rows = [Row(slot, root.position + 1, ())]
    for node in nodes:
        path = path_of[id(node)] = (*path_of[id(node.parent)], node.token_id)
        rows.append(Row(slot, node.position + 1, path))
    return rows
