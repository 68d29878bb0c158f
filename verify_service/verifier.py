"""The verifier: drives the rounds of all its sessions from their mirrors of the tree. Device thread only."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from outrider.core.estimate.step_curve import StepCurve
from outrider.core.propose.ngram import NgramTable
from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.messages import DraftWindow, Opened, Verdict, VerifyFinished, VerifyOpen
from outrider.core.protocol.tree import Node
from outrider.core.protocol.validation import RUN_AHEAD_MAX
from outrider.core.schedule import batching_delay
from outrider.core.schedule.batching_delay import ReadyTime
from outrider.core.schedule.prefill import prefill_budget
from outrider.core.schedule.queue import Priority
from outrider.core.verify.draft_wait import AT_ONCE
from outrider.core.verify.selection import Beside, most_probable
from outrider.core.verify.session import VerifyEstimates, VerifySession
from outrider.engine.engine import STEP_TOKENS_MAX, Engine
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.kv_cache.slots import Slot
from outrider.engine.sample.sampler import Row
from outrider.worker.admission import Admission
from outrider.worker.outbox import Outbox

VerifyEvent = Opened | Verdict | VerifyFinished


class Verification:
    """One session at the verifier."""

    def __init__(self, opening: VerifyOpen, outbox: Outbox[VerifyEvent]) -> None:
        """It arrives now."""
        self.opening = opening
        self.outbox = outbox
        self.deadline = math.inf if opening.time_left_ms is None else time.monotonic() + opening.time_left_ms / 1000.0
        self.expect_drafts = opening.expect_drafts
        self.state: VerifySession
        """From `Verifier.open` on."""
        self.token_ids: Sequence[int] = opening.token_ids
        self.priority: Priority
        self.slot: Slot | None = None
        self.is_prefilling = True
        self.has_ended = False
        self.num_rounds = 0
        self.last_verdict = 0.0
        """When the last verdict was given (or the session admitted), on the monotonic clock."""
        self.ready_at = self.go_at = math.inf
        """When its next draft is expected, and when its next round is due even if none comes."""
        self.gain = 0.0
        """What that draft is worth; see `ReadyTime`."""
        self.stirred = False
        """Whether something happened since these were set."""
        self.num_stale_nodes = 0

    def ready_time(self, now: float) -> ReadyTime:
        """What the session hopes for."""
        return ReadyTime(self.ready_at if now < self.ready_at else self.go_at, self.gain)


class _Part(NamedTuple):
    """One session's part in a step."""

    session: Verification
    job: Job
    nodes: list[Node]
    """What is scored; nothing while the line is being read."""
    num_line_tokens: int
    """How much of the line may be fed."""


class _Step(NamedTuple):
    """A forward pass and its choice."""

    logits: Tensor
    """[R, V]."""
    started: float
    """On the monotonic clock."""
    started_ns: int
    seconds: float
    probability_min: float
    """See `Verdict`."""


class Verifier:
    """Steps all sessions whose next round is due in one forward pass."""

    def __init__(
        self,
        engine: Engine,
        eos_token_ids: Sequence[int],
        *,
        max_queue: int = 0,
        ngram_table: Callable[[], NgramTable] | None = None,
    ) -> None:
        """At most `max_queue` sessions wait for room. `ngram_table` makes a session's n-gram table, empty;
        without it the drafters guess alone."""
        self._ngram_table = ngram_table
        self._eos_token_ids = eos_token_ids
        self.admission: Admission[Verification] = Admission(engine, max_queue=max_queue)
        self.session_type = VerifySession
        """What sessions that open from now on are; a benchmark may put another policy here."""
        self.estimates = VerifyEstimates()
        """What was learned about the device and the drafts."""
        self.relearn()

    def relearn(self) -> None:
        """Measures the time of steps; what was learned of it is void."""
        self.estimates.restart(self.admission.engine.measure())

    def open(self, session: Verification) -> None:
        """Takes the session in: it begins with the next step, waits for room, or is refused then."""
        opening = session.opening
        session.state = self.session_type(
            opening,
            vocab_size=self.admission.engine.vocab_size,
            eos_token_ids=self._eos_token_ids,
            max_live_nodes=RUN_AHEAD_MAX,
            estimates=self.estimates,
            ngrams=self._ngram_table() if self._ngram_table is not None and opening.max_draft_tokens else None,
        )
        session.token_ids = session.state.line.token_ids
        self.admission.enter(session)

    def graft(self, session: Verification, window: DraftWindow, arrived: float) -> None:
        """Adds draft nodes that arrived at `arrived`, on the monotonic clock, maybe while a step was running."""
        if session.has_ended:
            return
        session.expect_drafts = True
        try:
            session.num_stale_nodes += session.state.graft(window, arrived).num_stale
        except ProtocolViolationError as violation:
            self.admission.fail(session, violation)
            return
        session.stirred = True

    def end_drafts(self, session: Verification) -> None:
        """No drafts will come: never wait for any."""
        session.expect_drafts = False
        session.stirred = True

    def close(self, session: Verification) -> None:
        """Ends the session, whether it has a slot or waits for one."""
        self.admission.dismiss(session)

    def step(self) -> float | None:
        """One round for each session that is due, and a chunk of the lines that are to be read. See `Worker.step`."""
        admission = self.admission
        now = time.monotonic()
        for session in admission.admit():
            session.last_verdict = now
        deciding, prefilling = admission.apart(admission.sessions)
        if not deciding:
            if prefilling:
                admission.run(prefilling, self._round)
            return 0.0 if prefilling else None
        for session in deciding:
            if session.stirred:
                session.stirred = False
                self._reconsider(session, now, len(deciding) - 1)
        ready_times = [session.ready_time(now) for session in deciding]
        seconds = self._curve.seconds(len(deciding))
        start = batching_delay.start(ready_times, now, seconds)
        if start > now and not prefilling:
            return start - now
        going = [
            session
            for session, ready_time in zip(deciding, ready_times, strict=True)
            if batching_delay.goes(ready_time, now, seconds)
        ]
        admission.run([*going, *prefilling], self._round)
        return 0.0

    @property
    def _curve(self) -> StepCurve:
        """The time of steps as they are at present."""
        return self.estimates.steps(drafting=any(session.expect_drafts for session in self.admission.sessions))

    def _reconsider(self, session: Verification, now: float, num_beside: int) -> None:
        """Sets when the session's next round is due, by what is at hand and what may come. What is due stays due."""
        if session.go_at <= now:
            return
        wait = session.state.wait(now, num_beside) if session.expect_drafts else AT_ONCE
        session.ready_at, session.go_at, session.gain = now + wait.expected, now + wait.longest, wait.gain

    def _round(self, sessions: Sequence[Verification]) -> None:
        curve = self._curve
        parts, probability_min = self._compose(sessions, curve)
        if not parts:
            return
        started, started_ns = time.monotonic(), time.time_ns()
        for session, _, nodes, _ in parts:
            session.state.begin(nodes, started)
        output, num_beside = self.admission.feed(
            {part.session: part.job for part in parts}, sum(part.num_line_tokens for part in parts)
        )
        rows: list[Row] = []
        complete: list[tuple[Verification, list[Node], int]] = []
        for (session, _, nodes, _), num_rows in zip(parts, output.num_rows, strict=True):
            if num_rows is not None:
                complete.append((session, nodes, len(rows)))
                rows.extend(_rows(session, nodes))
        choices = self.admission.sampler.choose(output.logits, rows) if rows else []
        step = _Step(output.logits, started, started_ns, time.monotonic() - started, probability_min)
        curve.observe(len(rows) + num_beside, step.seconds)
        for session, nodes, first_row in complete:
            self._decide(session, nodes, choices[first_row : first_row + 1 + len(nodes)], first_row, step)

    def _compose(self, sessions: Sequence[Verification], curve: StepCurve) -> tuple[list[_Part], float]:
        """What the next step consists of, who decides before who reads; and its `probability_min`."""
        admission = self.admission
        deciding, prefilling = admission.apart(sessions)
        is_awaited = any(not session.is_prefilling for session in admission.sessions)
        num_rows = len(deciding) or int(is_awaited)
        if deciding and prefilling:
            usual = most_probable([session.state.candidates for session in deciding], curve)
            num_rows += sum(map(len, usual.nodes))
        assigned = admission.assign(prefilling, prefill_budget(curve, num_rows, STEP_TOKENS_MAX))
        scoring = [*deciding, *(session for session, _, to_end in assigned if to_end)]
        num_beside = sum(num_tokens for _, num_tokens, _ in assigned) + len(deciding) - len(scoring)
        selection = most_probable([session.state.candidates for session in scoring], curve, Beside(num_beside))
        if scoring:
            self.estimates.probability_min = selection.probability_min
        nodes_of = dict(zip(scoring, selection.nodes, strict=True))
        shares = [(session, 1) for session in deciding] + [(session, num_tokens) for session, num_tokens, _ in assigned]

        def parts() -> list[_Part]:
            return [
                _Part(session, _job(session, nodes := nodes_of.get(session, [])), nodes, num_tokens)
                for session, num_tokens in shares
            ]

        composed = parts()
        if not admission.has_room(part.job for part in composed):
            nodes_of.clear()
            composed = parts()
            staying = admission.make_room({part.session: part.job for part in composed})
            composed = [part for part in composed if part.session in staying]
        return composed, selection.probability_min

    def _decide(
        self, session: Verification, nodes: list[Node], choices: Sequence[int], first_row: int, step: _Step
    ) -> None:
        assert session.slot is not None
        wait_ms = (step.started - session.last_verdict) * 1000.0
        session.last_verdict = time.monotonic()
        decision = session.state.decide(nodes, choices, session.last_verdict)
        self.admission.sampler.commit(session.slot.index, decision.token_ids)
        num_logprobs = session.opening.num_logprobs
        logprobs = (
            self.admission.sampler.logprobs(
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
            probability_min=step.probability_min,
            logprobs=logprobs,
            num_cached_tokens=0 if session.num_rounds else session.slot.num_cached_tokens,
            num_prompt_lookup=decision.num_prompt_lookup,
            num_accepted_prompt_lookup=decision.num_accepted_prompt_lookup,
        )
        session.num_rounds += 1
        session.num_stale_nodes = 0
        ended_ns = time.time_ns()
        session.outbox.put(verdict, step.started_ns, ended_ns)
        if decision.finish_reason is not None:
            session.outbox.put(VerifyFinished(decision.finish_reason), ended_ns, ended_ns)
            session.outbox.end()
            self.close(session)
            return
        session.ready_at = session.go_at = math.inf
        session.stirred = True


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
