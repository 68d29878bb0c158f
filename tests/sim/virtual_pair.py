"""A drafter and a verifier on a virtual clock: the services' own schedulers, made-up step times, delays and luck."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.rivals.ruled import Policy, policy_of
from bench.simulate.virtual import Speculation, Times, VirtualStack
from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.core.draft.session import DraftSession
from outrider.core.propose.ngram import NgramTable
from outrider.core.protocol.line import Line
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import Node
from outrider.core.schedule.draft_step import Proposal

from .toys import Target, TieredDraft, ToyTarget, place_after

VOCAB_SIZE = 50
PROMPT = [3, 1, 4]


def flat(seconds: float) -> Callable[[int], float]:
    """A device that takes the same time for any step."""
    return lambda num_tokens: seconds


def sloped(seconds: float, per_token: float) -> Callable[[int], float]:
    """A device that takes `seconds` for one token and `per_token` of that more for each further one."""
    return lambda num_tokens: seconds * (1.0 + per_token * (num_tokens - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a pair works under. Times are in seconds."""

    draft_step: Callable[[int], float]
    """Duration of a draft step by the number of nodes it expands."""
    verify_step: Callable[[int], float]
    """Duration of a verify step by the number of tokens in it."""
    coverage: tuple[float, ...]
    """Chance that the target's choice is among the draft's first 1, 2, ... guesses."""
    hop: float = 0.0
    """From a worker to the coordinator, or back."""
    window: float = 0.0
    """Windows of one draft step come that long after one another."""
    pause: float = 0.0
    """Between two draft steps."""
    rest: float = 0.0
    """What a verifier's host does after each step."""
    num_levels_max: int = 1
    """Most levels of a drafter's run."""
    tree_width: int = 0
    max_draft_tokens: int = 16
    max_run_ahead: int = 96
    num_tokens: int = 1200
    seed: int = 5

    def stack(self, num_sessions: int = 1, policy: Policy | None = None) -> VirtualStack:
        """So many sessions on one pair of workers."""
        targets = [ToyTarget(self.seed + index, VOCAB_SIZE) for index in range(num_sessions)]
        return self.writing(targets, policy or policy_of(None))

    def writing(
        self, targets: Sequence[Target], policy: Policy, ngram_table: Callable[[], NgramTable] | None = None
    ) -> VirtualStack:
        """A session for each of `targets` on one pair of workers; see `VirtualStack`."""
        return VirtualStack(
            [ToyAnswer(self, target) for target in targets],
            Times(
                draft=self.draft_step,
                verify=lambda num_more: self.verify_step(1 + num_more),
                delay=self.hop,
                report=self.hop,
                window=self.window,
                pause=self.pause,
                rest=self.rest,
                num_levels_max=self.num_levels_max,
            ),
            Speculation(
                tree_width=self.tree_width, run_ahead=self.max_run_ahead, max_draft_tokens=self.max_draft_tokens
            ),
            policy,
            ngram_table,
        )


class ToyAnswer:
    """What a toy target writes, and a draft that is right as often as told."""

    prompt = PROMPT
    vocab_size = VOCAB_SIZE
    sampling = SamplingParams()

    def __init__(self, given: Circumstances, target: Target) -> None:
        self.length = len(PROMPT) + given.num_tokens
        self._target = target
        self._draft = TieredDraft(target, given.coverage)

    def next_token(self, line: Line, node: Node) -> int:
        return self._target.next_token(place_after(line, node))

    def propose(self, session: DraftSession, nodes: Sequence[Node]) -> list[Proposal]:
        return [self._draft.propose(place_after(session.line, node)) for node in nodes]


class Outcome(NamedTuple):
    """What a run came to."""

    seconds_per_token: float
    both_busy: float
    """Share of the time in which both devices worked."""
    draft_busy: float
    """Share of the time in which the drafter worked."""
    wait: float
    """Share of the time in which the verifier waited."""
    statistics: SpeculationStatistics
    token_ids: Sequence[int]


def run_pair(circumstances: Circumstances, policy: Policy | None = None) -> Outcome:
    """One session from the prompt to the end of the line, as the coordinator has it."""
    return outcome(circumstances, circumstances.stack(policy=policy))


def outcome(circumstances: Circumstances, stack: VirtualStack) -> Outcome:
    """The same for a stack of one session."""
    [session] = stack.sessions
    stack.run(lambda: len(session.line) == len(PROMPT) + circumstances.num_tokens)
    now, work = stack.clock.now, stack.work
    return Outcome(
        now / circumstances.num_tokens,
        work.both / now,
        work.busy["draft"] / now,
        stack.wait / now,
        session.statistics,
        session.line.token_ids[len(PROMPT) :],
    )
