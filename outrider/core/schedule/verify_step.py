"""A step of the verifier: whose rounds it takes on, what each scores, and what came out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, NamedTuple

from outrider.core.estimate.step_curve import StepCurve
from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.messages import Verdict, VerifyOpen
from outrider.core.protocol.tree import Node
from outrider.core.schedule.admission import Seated
from outrider.core.schedule.batching_delay import ReadyTime
from outrider.core.schedule.policy import RoundPolicy
from outrider.core.schedule.step import Event, KeyT
from outrider.core.verify.session import VerifySession

HeldEvents = Callable[[], Iterable[Event[KeyT, OutriderError]] | None]
"""Something that happened to a session in flight: it is told when that one's step is settled."""


class Verification(Generic[KeyT]):
    """What the scheduler knows of one session."""

    def __init__(self, key: KeyT, opening: VerifyOpen, state: VerifySession, rounds: RoundPolicy) -> None:
        self.key = key
        self.opening = opening
        self.state = state
        self.rounds = rounds
        self.token_ids = state.line.token_ids
        self.expect_drafts = opening.expect_drafts
        self.last_verdict = 0.0
        """When the last verdict was given, or the session admitted."""
        self.ready_at = self.go_at = math.inf
        """When its next draft is expected, and when its next round is due even if none comes."""
        self.gain = 0.0
        """What that draft is worth; see `ReadyTime`."""
        self.stirred = False
        """Whether something happened since these were set."""
        self.num_rounds = 0
        self.num_stale_nodes = 0
        self.in_flight = False
        """Whether a step that was launched decides it."""
        self.held: list[HeldEvents[KeyT]] = []
        """What happened to it since, in order."""

    def ready_time(self, now: float) -> ReadyTime:
        """What the session hopes for."""
        return ReadyTime(self.ready_at if now < self.ready_at else self.go_at, self.gain)


class VerifyPart(NamedTuple, Generic[KeyT]):
    """One session's part in a step."""

    seated: Seated[Verification[KeyT]]
    nodes: list[Node]
    """What is scored besides the line's end, parents before children; nothing while the line is prefilled."""
    num_line_tokens: int
    """How much of the line may be fed."""

    @property
    def session(self) -> Verification[KeyT]:
        """Whose part it is."""
        return self.seated.session

    @property
    def slot(self) -> int:
        """The session's slot."""
        return self.seated.slot


class VerifyStep(NamedTuple, Generic[KeyT]):
    """What the device is to do: one forward pass, and the choice of the tokens that follow the scored ones."""

    parts: list[VerifyPart[KeyT]]
    """In the order in which their lines are fed: who decides before who prefills."""
    probability_min: float
    """See `Verdict`."""
    num_held: dict[Seated[Verification[KeyT]], int]
    """Tokens that the slots of those who prefill held before."""

    @property
    def num_line_tokens(self) -> int:
        """How many tokens of lines may be fed altogether."""
        return sum(part.num_line_tokens for part in self.parts)


class VerifyOutcome(NamedTuple):
    """What came out of a step."""

    started: float
    seconds: float
    """For how long the device was its own."""
    choices: Sequence[Sequence[int] | None]
    """For each part the target's token after the line and after each node, or None if the line is not fed yet."""
    launch_seconds: float = 0.0
    """How long the host took to plan and launch it, where it goes on while the device computes."""


class SettledStep(NamedTuple):
    """A step that was decided, until it is known what it took with all that was done for it."""

    curve: StepCurve
    """That learns of it."""
    num_tokens: int


class Decided(NamedTuple):
    """A verdict, all but the log-probabilities of its tokens."""

    verdict: Verdict
    rows: list[int]
    """For each committed token the row that chose it, counted through all choices of the step."""


def nums_cells(
    sessions: Iterable[Seated[Verification[KeyT]]], num_held: Mapping[Seated[Verification[KeyT]], int] | None = None
) -> Iterator[int]:
    """Cells that these sessions' lines take: of those who prefill, as many as their slots held."""
    for seated in sessions:
        num_cells = len(seated.session.token_ids)
        yield num_cells if num_held is None else num_held.get(seated, num_cells)
