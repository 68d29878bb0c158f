"""The verifier: drives the rounds of all its sessions from their mirrors of the tree. Device thread only."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor

from outrider.core.errors import ProtocolViolationError
from outrider.core.messages import Opened, Verdict, VerifyFinished, VerifyOpen, Window
from outrider.core.patience import Patience
from outrider.core.tree import Node
from outrider.core.validation import RUN_AHEAD_MAX
from outrider.core.verifying import VerifySession
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
        self.patience = Patience()
        self.expect_drafts = opening.expect_drafts
        self.state: VerifySession
        self.slot: Slot | None = None
        self.last_verdict = 0.0
        """When the last verdict was given (or the session opened), on the monotonic clock."""
        self.go_at = 0.0
        """When the next round starts at the latest."""
        self.num_rounds = 0
        self.awaits_first_draft = False
        self.num_stale_nodes = 0


class Verifier:
    """Steps all sessions whose next round is due in one forward pass."""

    def __init__(self, engine: Engine, eos_token_ids: Sequence[int]) -> None:
        self._eos_token_ids = eos_token_ids
        self._roster: Roster[Verification] = Roster(engine)

    def open(self, session: Verification) -> None:
        """Gives the session a slot, or fails it."""
        if not self._roster.admit(session, time.time_ns()):
            return
        session.state = VerifySession(
            session.opening,
            vocab_size=self._roster.engine.vocab_size,
            eos_token_ids=self._eos_token_ids,
            max_live_nodes=RUN_AHEAD_MAX,
        )
        session.last_verdict = time.monotonic()

    def graft(self, session: Verification, window: Window) -> None:
        """Adds draft nodes to the session's tree and thinks again about waiting."""
        if session.slot is None:
            return
        session.expect_drafts = True
        was_empty = session.state.tree.num_live == 0
        try:
            added, _, num_stale = session.state.graft(window)
        except ProtocolViolationError as violation:
            self._roster.fail(session, violation)
            return
        session.num_stale_nodes += num_stale
        elapsed = time.monotonic() - session.last_verdict
        if added:
            if was_empty and session.num_rounds:
                session.patience.observe_first_draft(elapsed)
            session.patience.observe_window(len({node.position for node in added}), window.draft_ms / 1000.0)
            self._reconsider(session)

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
        now = time.monotonic()
        due = [session for session in sessions if session.go_at <= now]
        if due:
            self._roster.run(due, self._round)
            return 0.0
        return min(session.go_at for session in sessions) - now

    def _round(self, sessions: Sequence[Verification]) -> None:
        chosen = [session.state.choose() for session in sessions]
        started, started_ns = time.monotonic(), time.time_ns()
        for session, nodes in zip(sessions, chosen, strict=True):
            if session.awaits_first_draft and not nodes:
                session.patience.observe_no_draft(started - session.last_verdict)
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
        ended = time.monotonic()
        for session, nodes, first_row in complete:
            wait_ms = (started - session.last_verdict) * 1000.0
            self._decide(session, nodes, choices, first_row, output.logits, started_ns, ended - started, wait_ms)

    def _decide(
        self,
        session: Verification,
        nodes: list[Node],
        choices: Sequence[int],
        first_row: int,
        logits: Tensor,  # [R, V]
        started_ns: int,
        duration: float,
        wait_ms: float,
    ) -> None:
        assert session.slot is not None
        decision = session.state.decide(nodes, choices[first_row : first_row + 1 + len(nodes)])
        self._roster.sampler.commit(session.slot.index, decision.token_ids)
        num_logprobs = session.opening.num_logprobs
        logprobs = (
            self._roster.sampler.logprobs(
                logits[[first_row + row for row in decision.rows]], decision.token_ids, num_logprobs
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
            verify_ms=duration * 1000.0,
            wait_ms=max(wait_ms, 0.0),
            logprobs=logprobs,
        )
        session.num_stale_nodes = 0
        session.num_rounds += 1
        session.last_verdict = time.monotonic()
        ended_ns = time.time_ns()
        session.outbox.put(verdict, started_ns, ended_ns)
        if decision.finish_reason is not None:
            session.outbox.put(VerifyFinished(decision.finish_reason), ended_ns, ended_ns)
            session.outbox.end()
            self.close(session)
            return
        rejected = bool(nodes) and not decision.bonus and decision.num_accepted < len(nodes)
        session.patience.observe_round(decision.num_accepted, rejected, duration)
        if decision.late_guess is not None:
            session.patience.observe_guess(decision.late_guess)
        self._reconsider(session)

    def _reconsider(self, session: Verification) -> None:
        """Sets when the session's next round starts, by what is at hand and what may come."""
        if not session.expect_drafts or session.opening.max_draft_tokens == 0:
            session.go_at = 0.0
            return
        now = time.monotonic()
        ready = session.state.num_ready_levels
        wait = session.patience.wait(ready, session.opening.max_draft_tokens - ready, now - session.last_verdict)
        session.go_at = now + wait
        session.awaits_first_draft = ready == 0 and wait > 0.0


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
