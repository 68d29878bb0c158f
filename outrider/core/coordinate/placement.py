"""Load balancing: a session goes to the verifier that should finish it first and to the drafter worth most to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from outrider.core.estimate.step_curve import StepCurve
from outrider.core.protocol.messages import WorkerLoad
from outrider.core.protocol.refusal import Refusal
from outrider.core.protocol.validation import EXPANSIONS_MAX

PREFILL_TOKENS_PER_STEP = 64
"""Tokens that a verifier is assumed to prefill in the time of one decoding step: fewer on a CPU, more on a GPU. The
constant only weighs waiting prompts against running sessions when verifiers are compared."""

STEP_MS_UNKNOWN = 1.0
"""Duration of a step where no verifier has reported one: any value compares verifiers by their sessions alone."""

LEVELS_PER_STEP_MIN = 0.5
"""Levels of the tree that a drafter must make during one verify step to be shared. With fewer than one its guesses
mostly come too late; half of it leaves room for the error of the prediction."""

GROWTH_TOKENS = 64
"""KV cache tokens reserved for the growth of each session, as workers reserve them when they admit another one."""

_CONTENDERS_MIN = 2
"""Verifiers of which the better one is chosen where nothing but reports is known."""

REPORTS_MIN = 10
"""Reports with sessions before a drafter may count as too slow: the first steps of a process are slower than later
ones. A worker sends at most ten reports a second."""


class StepTime:
    """A worker's time per step as a function of its number of sessions, learned from its load reports."""

    __slots__ = ("_curve", "_most", "num_reports")

    def __init__(self) -> None:
        self.num_reports = 0
        """Reports that had sessions."""
        self._curve = StepCurve()
        self._most = 0

    def observe(self, load: WorkerLoad) -> None:
        """Learns from a report. One without sessions is ignored: its step time is of an earlier load."""
        if load.num_sessions > 0 and 0.0 < load.step_ms < math.inf:
            self.num_reports += 1
            self._curve.observe(load.num_sessions, load.step_ms / 1000.0)
            self._most = max(self._most, load.num_sessions)

    def step_ms(self, num_sessions: int) -> float:
        """The expected duration of a step with `num_sessions` (at least 1); 0 while nothing is known.

        Beyond the largest load observed it grows in proportion: the worst case, so that sessions spread.
        """
        if self._most == 0:
            return 0.0
        known = min(num_sessions, self._most)
        return self._curve.seconds(known) * 1000.0 * num_sessions / known


class ReplicaState(NamedTuple):
    """One worker's load: the coordinator's own sessions as they are, and others' as they were last reported."""

    step_time: StepTime
    load: WorkerLoad | None
    """None while it has reported nothing: then only this coordinator's sessions are known."""
    max_sessions: int
    num_own: int = 0
    """This coordinator's sessions there."""
    num_recounted: int = 0
    """This coordinator's sessions that the report may count: some of those, and others that have ended."""
    num_unreported_tokens: int = 0
    """Line tokens of its sessions there that the report may not count."""

    @property
    def num_sessions(self) -> int:
        """Sessions there, queued ones included."""
        reported = self.load.num_sessions + self.load.num_queued if self.load is not None else 0
        return max(reported - self.num_recounted, 0) + self.num_own

    @property
    def step_ms(self) -> float:
        """The expected duration of a step with one session more; 0 while unknown."""
        return self.step_time.step_ms(self.num_sessions + 1)

    def no_room(self, num_tokens: int) -> Refusal | None:
        """Why a session with a line of `num_tokens` would have to wait there; None if it would not.

        Where no session is, there is room for any, whatever a report says that was made while the last one left.
        """
        if not self.num_sessions:
            return None
        if self.num_sessions >= self.max_sessions:
            return Refusal(f"all of its {self.max_sessions} slots are taken")
        load = self.load
        # A worker without a KV cache reports room for no tokens.
        if load is not None and load.num_kv_tokens > 0:
            # A session reported as queued may be admitted any moment: its tokens count in any case.
            num_due = load.num_queued_tokens + self.num_unreported_tokens + GROWTH_TOKENS * (self.num_sessions + 1)
            if load.num_free_kv_tokens - num_due < num_tokens:
                return Refusal(f"it has no room for the keys and values of {num_tokens} tokens")
        return None


class DrafterCandidate(NamedTuple):
    """A drafter that may be chosen."""

    replica_state: ReplicaState
    worth: float
    """Tokens per round that its model's sessions can expect; see `DrafterBandit.worth`."""
    num_failures: int = 0
    """Streams that it has broken in a row."""


def expected_ms(replica_state: ReplicaState, step_ms: float, num_tokens: int, num_rounds: int) -> float:
    """Time until a session with a line of `num_tokens` has had `num_rounds` at a verifier whose steps take `step_ms`.

    A queued session waits until as many sessions have ended as are queued up to it, and sessions end one by one.
    """
    load = replica_state.load
    num_uncomputed = (
        num_tokens + replica_state.num_unreported_tokens + (load.num_queued_tokens if load is not None else 0)
    )
    num_waits = 0.0
    if replica_state.no_room(num_tokens):
        num_ahead = load.num_queued if load is not None else 0
        num_waits = (num_ahead + 1) / max(replica_state.num_sessions - num_ahead, 1)
    return step_ms * (num_uncomputed / PREFILL_TOKENS_PER_STEP + num_rounds * (1.0 + num_waits))


def choose_verifier(replica_states: Sequence[ReplicaState], num_tokens: int, num_rounds: int) -> int:
    """Index of the verifier that is expected to be done first with a session; among equals the one with the fewest
    sessions, then the first one.

    A verifier of unknown speed counts as no slower than the others, so that it is tried. `replica_states` must not be
    empty.
    """
    known = [replica_state.step_time.step_ms(1) for replica_state in replica_states if replica_state.step_ms > 0.0]
    prior = min(known, default=STEP_MS_UNKNOWN)

    def cost(index: int) -> tuple[float, int, int]:
        replica_state = replica_states[index]
        step_ms = replica_state.step_ms or prior * (replica_state.num_sessions + 1)
        return expected_ms(replica_state, step_ms, num_tokens, num_rounds), replica_state.num_sessions, index

    return min(range(len(replica_states)), key=cost)


def contenders(
    replica_states: Sequence[ReplicaState], sample: Callable[[Sequence[int], int], Sequence[int]]
) -> Sequence[int]:
    """Indices of the verifiers among which the best is to be chosen: all where the sessions are this coordinator's own,
    whose changes it knows, and two by chance where they are others', which it knows from reports. Of more than two they
    come in an order by chance: so do first ones of equals.

    `sample` draws so many of a sequence, each as likely, in any order. Whoever is idle by a report seems so to all
    coordinators, and all choose it until the next one. The better of two at random is nearly as good as the best of all
    by true loads, and far better by old ones (Mitzenmacher, "How useful is old information?", IEEE TPDS 11(1), 2000).
    """
    num, num_own = len(replica_states), sum(each.num_own for each in replica_states)
    num_known = sum(each.num_sessions for each in replica_states)
    own_share = num_own / num_known if num_known else 1.0
    most = min(_CONTENDERS_MIN + round((num - _CONTENDERS_MIN) * own_share), num)
    return range(num) if num <= _CONTENDERS_MIN else sample(range(num), most)


def place(
    replica_states: Sequence[ReplicaState],
    num_tokens: int,
    num_rounds: int,
    sample: Callable[[Sequence[int], int], Sequence[int]],
) -> int:
    """Index of the verifier that a session goes to: the best one of the `contenders`, by `choose_verifier`."""
    among = contenders(replica_states, sample)
    return among[choose_verifier([replica_states[index] for index in among], num_tokens, num_rounds)]


def level_ms(replica_state: ReplicaState) -> float:
    """Time in which a drafter with one session more makes one level of each session's tree; 0 while unknown."""
    return replica_state.step_ms * max(1.0, (replica_state.num_sessions + 1) / EXPANSIONS_MAX)


def overload(replica_state: ReplicaState, num_tokens: int, verify_step_ms: float) -> Refusal | None:
    """Why a drafter should not take a session with a line of `num_tokens`; None if it should.

    A session runs by the target alone rather than wait for a drafter, or for drafts that come too late. An idle drafter
    is never too slow: the verifier decides what its guesses are worth.
    """
    no_room = replica_state.no_room(num_tokens)
    if no_room or not replica_state.num_sessions or replica_state.step_time.num_reports < REPORTS_MIN:
        return no_room
    level = level_ms(replica_state)
    if 0.0 < verify_step_ms < LEVELS_PER_STEP_MIN * level:
        return Refusal(
            f"with {replica_state.num_sessions} sessions it takes {level:.1f} ms for a level of drafts, and the target "
            f"{verify_step_ms:.1f} ms for a step"
        )
    return None


def choose_drafter(candidates: Sequence[DrafterCandidate], verify_step_ms: float) -> int:
    """Index of the drafter that is worth most to a session: tokens per verify step, bounded by what its model's guesses
    have been worth and by how many levels it makes meanwhile (a chain commits no more tokens than it has levels).

    Among equals the one that failed least, then the one with the fewest sessions, then the first one. `candidates`
    must not be empty and should hold none that is overloaded.
    """

    def cost(index: int) -> tuple[float, int, int, int]:
        candidate = candidates[index]
        level = level_ms(candidate.replica_state)
        num_levels = verify_step_ms / level if level > 0.0 and verify_step_ms > 0.0 else math.inf
        return -min(candidate.worth, num_levels), candidate.num_failures, candidate.replica_state.num_sessions, index

    return min(range(len(candidates)), key=cost)
