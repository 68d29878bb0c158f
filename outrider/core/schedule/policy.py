"""What a scheduler decides by. The defaults are production's; a benchmark hands in rivals' rules and ablations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from outrider.core.draft.estimates import DraftEstimates
from outrider.core.draft.session import everywhere
from outrider.core.estimate.overlap import Overlap
from outrider.core.estimate.rhythm import Rhythm
from outrider.core.estimate.speculation_gate import SpeculationGate
from outrider.core.protocol.messages import DraftOpen, VerifyOpen
from outrider.core.protocol.naming import Grafted
from outrider.core.protocol.tree import Node
from outrider.core.verify.draft_wait import Wait
from outrider.core.verify.estimates import VerifyEstimates
from outrider.core.verify.selection import Candidates, Select, most_probable
from outrider.core.verify.session import VerifySession

OWN_GAIN_MIN = 1.1
"""What own guesses of sessions without a drafter must gain. Sessions that get on by chance end one by one, and the last
of a burst leave the device half empty: eight that gained nothing between verdicts served a tenth less."""


class RoundPolicy(Protocol):
    """When one session's rounds go, and what they may score."""

    def observe(self, session: VerifySession, grafted: Grafted) -> None:
        """Drafts have arrived."""
        ...

    def wait(self, session: VerifySession, now: float, num_beside: int) -> Wait:
        """See `VerifySession.wait`; asked after each verdict and whenever drafts arrive."""
        ...

    def candidates(self, session: VerifySession) -> Candidates:
        """See `VerifySession.candidates`."""
        ...


class ExpectedGain:
    """Rounds go when that promises the most tokens per second, and may score all that is at hand."""

    def observe(self, session: VerifySession, grafted: Grafted) -> None:
        """Has nothing to learn that the session has not."""

    def wait(self, session: VerifySession, now: float, num_beside: int) -> Wait:
        """As the session finds best."""
        return session.wait(now, num_beside)

    def candidates(self, session: VerifySession) -> Candidates:
        """All of them."""
        return session.candidates


_EXPECTED_GAIN = ExpectedGain()


@dataclass(slots=True)
class VerifyPolicy:
    """What a verifier's scheduler decides by. A change holds for sessions that open after it."""

    estimates: VerifyEstimates = field(default_factory=VerifyEstimates)
    """What was learned about the device and the drafts."""
    looks_up: bool = True
    """Whether sessions guess from their own lines where the scheduler has tables for that."""
    rounds: Callable[[VerifyOpen], RoundPolicy] = lambda opening: _EXPECTED_GAIN
    """Makes the policy of a session that opens."""
    select: Select = most_probable
    """Chooses what a step scores of all that its rounds may."""
    own_guessing: SpeculationGate = field(
        default_factory=lambda: SpeculationGate(gain_min=OWN_GAIN_MIN, begins_open=False)
    )
    """Tells whether sessions without a drafter guess by themselves; see `OwnGuessing`. For several it begins shut: a
    coordinator's trial without drafts is then one of the plain target, and not of this gate's own trials."""
    overlap: Overlap | None = None
    """Decides about two groups of sessions; None where nothing is done while the device computes. Set at the start."""


@dataclass(slots=True)
class DraftPolicy:
    """What a drafter's scheduler decides by. A change holds for sessions that open after it."""

    estimates: DraftEstimates = field(default_factory=DraftEstimates)
    """What was learned about the device and the guesses."""
    sends_at_once: bool = False
    """Whether each node is sent when it is drafted, rather than gathered into windows."""
    in_turn: bool = False
    """Whether the verifier waits while the drafter works: then nothing is sent before `DraftScheduler.send_all`."""
    opening: Callable[[DraftOpen], DraftOpen] = lambda opening: opening
    """What a session opens with: how wide it drafts, and how far ahead."""
    expands: Callable[[Node], bool] = everywhere
    """Whether what follows a new node may be drafted too."""
    rhythm: Callable[[], Rhythm] = Rhythm
    """Makes what learns when a session's rounds begin, by which its windows are sent."""
    mask_token_id: int | None = None
    """The mask token of a parallel draft model; None where `estimates` are of passes that propose for one place."""

    def draft_in_parallel(self, mask_token_id: int, num_positions: int) -> None:
        """From now on a pass proposes for up to `num_positions` places below a node. What was learned is forgotten."""
        self.mask_token_id = mask_token_id
        self.estimates = DraftEstimates(num_positions=num_positions)
