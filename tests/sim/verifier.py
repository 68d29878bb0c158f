"""A verifier of a simulated world: the service's scheduler without a device, with every promise of a round checked."""

from __future__ import annotations

from collections.abc import Iterable

from bench.rivals.ruled import HastyRounds
from bench.simulate.memory import AmpleMemory
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.propose.ngram import NgramTable
from outrider.core.propose.recent_answers import RecentAnswersByTenant
from outrider.core.protocol.messages import DraftWindow, Verdict, VerifyFinished, VerifyOpen
from outrider.core.protocol.naming import Grafted, Inbound
from outrider.core.protocol.tree import Node, SpeculationTree, path_tokens
from outrider.core.protocol.validation import RUN_AHEAD_MAX
from outrider.core.schedule.policy import VerifyPolicy
from outrider.core.schedule.verify_scheduler import VerifyScheduler
from outrider.core.schedule.verify_step import Decided, VerifyOutcome, VerifyStep
from outrider.core.verify.estimates import VerifyEstimates
from outrider.core.verify.session import VerifySession

from .scenario import Scenario
from .toys import EOS_TOKEN_ID, place_after

VERIFY_MS = 1.0
"""What every verdict says that it took."""

SESSION = "the only one"


class TimelessCurve(StepCurve):
    """Learns nothing: time does not count, and all that is at hand is scored."""

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Forgets it."""


class WatchedRounds(HastyRounds):
    """Never waits, and shows what became of the latest window."""

    grafted: Grafted | None = None

    def observe(self, session: VerifySession, grafted: Grafted) -> None:
        self.grafted = grafted


def _recent(scenario: Scenario) -> RecentAnswersByTenant:
    """An answer to the same prompt in which every ninth token is another one: guesses that are often right."""
    found = RecentAnswersByTenant(has_common=True)
    answers = found.of("")
    assert answers is not None
    token_ids, _ = scenario.expected()
    edited = [(token_id + (place % 9 == 8)) % scenario.target.vocab_size for place, token_id in enumerate(token_ids)]
    answers.add([*scenario.prompt, *edited])
    return found


class CheckedVerifier:
    """One session, and beside it the tree of what it is sent alone."""

    def __init__(self, scenario: Scenario, opening: VerifyOpen) -> None:
        self._scenario = scenario
        self._max_draft_tokens = opening.max_draft_tokens
        self._memory = AmpleMemory()
        self._rounds = WatchedRounds()
        estimates = VerifyEstimates()
        estimates.curve = TimelessCurve()
        self._scheduler: VerifyScheduler[str] = VerifyScheduler(
            self._memory,
            vocab_size=scenario.target.vocab_size,
            eos_token_ids=[EOS_TOKEN_ID],
            step_tokens_max=len(opening.token_ids),
            ngram_table=NgramTable if scenario.ngrams else None,
            recent=_recent(scenario) if scenario.ngrams else None,
            policy=VerifyPolicy(estimates, rounds=lambda opening: self._rounds),
        )
        self._scheduler.open(SESSION, opening, 0.0)
        self._scheduler.admit(0.0)
        self.state = self._scheduler.sessions[SESSION].state
        self.step: VerifyStep[str] | None = None
        self._drafted: set[Node] = set()
        """What of the step may have been sent; the rest was looked up or predicted."""
        line = opening.token_ids
        self.sent = SpeculationTree(len(line) - 1, line[-1])
        self._sent_names = Inbound(vocab_size=scenario.target.vocab_size, max_live_nodes=RUN_AHEAD_MAX)

    def begin(self, now: int) -> None:
        """A step starts."""
        self._drafted = set(self.state.tree.live_nodes())
        step = self._scheduler.plan(float(now))
        assert isinstance(step, VerifyStep)
        assert len(step.parts[0].nodes) <= self._max_draft_tokens
        self.step = step

    def call_off(self, now: int) -> None:
        """A step is planned, and does not take place."""
        self.begin(now)
        self.step = None

    def end(self, now: int) -> tuple[Verdict, VerifyFinished | None]:
        """The step is over: what it decides."""
        assert self.step is not None
        step, self.step = self.step, None
        [part] = step.parts
        state, nodes = self.state, part.nodes
        places = [place_after(state.line, node) for node in (state.tree.root, *nodes)]
        assert all(place.position < self._scenario.max_length for place in places), "scored past the line's end"
        scored = paths_of(state.tree.root, nodes)
        root = state.tree.root
        assert len(scored) == len(nodes), "a path was scored twice"
        own = [tuple(path_tokens(root, node)) for node in nodes if node not in self._drafted]
        self._memory.feed(part.slot, len(state.line))
        choices = [self._scenario.target.next_token(place) for place in places]
        outcome = VerifyOutcome(0.0, VERIFY_MS / 1000.0, [choices])
        decided, *ending = (content for _, content in self._scheduler.settle(step, outcome, float(now)))
        self._scheduler.observe(outcome.seconds)
        assert isinstance(decided, Decided)
        verdict = decided.verdict
        assert verdict.token_ids, "a round without progress"
        assert [places[row].position for row in decided.rows] == list(
            range(verdict.position, verdict.position + len(verdict.token_ids))
        )
        token_ids = tuple(verdict.token_ids)
        assert verdict.num_accepted == sum(token_ids[:depth] in scored for depth in range(1, len(token_ids) + 1))
        assert verdict.num_draft_tokens == len(nodes)
        assert self._scenario.ngrams or not verdict.num_prompt_lookup
        assert self._scenario.prediction or not verdict.num_prediction
        assert verdict.num_prompt_lookup + verdict.num_prediction == len(own)
        num_accepted_own = sum(path == token_ids[: len(path)] for path in own)
        assert verdict.num_accepted_prompt_lookup + verdict.num_accepted_prediction == num_accepted_own
        self.sent.commit(verdict.token_ids)
        self._check_nothing_is_left()
        if not ending:
            return verdict, None
        finished, end = ending
        assert isinstance(finished, VerifyFinished)
        assert end is None
        return verdict, finished

    def graft(self, window: DraftWindow, now: int) -> None:
        """Between two steps: the window must find what a verifier without a table would have."""
        self._rounds.grafted = None
        assert not self._scheduler.graft(SESSION, window, float(now)), "a breach of the protocol passed"
        found = self._rounds.grafted
        if found is None:
            assert not self._scheduler.sessions, "a window was ignored"
            return
        expected = self._sent_names.graft(self.sent, window)
        assert len(found.added) == len(expected.added)
        assert found[1:] == expected[1:]
        self._check_nothing_is_left()

    def end_drafts(self) -> None:
        """Between two steps: from the next one on it waits for none."""
        self._scheduler.end_drafts(SESSION)

    def _check_nothing_is_left(self) -> None:
        assert self.state.tree.num_live == self.sent.num_live
        assert paths(self.state.tree) == paths(self.sent), "looked-up guesses outlived their round"


def paths(tree: SpeculationTree) -> set[tuple[int, ...]]:
    """The tree's live nodes by content: the tokens from below its root to each of them."""
    return paths_of(tree.root, tree.live_nodes())


def paths_of(root: Node, nodes: Iterable[Node]) -> set[tuple[int, ...]]:
    path_of: dict[int, tuple[int, ...]] = {id(root): ()}
    for node in nodes:
        path_of[id(node)] = (*path_of[id(node.parent)], node.token_id)
    assert len(set(path_of.values())) == len(path_of), "two nodes for one path"
    return set(path_of.values()) - {()}
