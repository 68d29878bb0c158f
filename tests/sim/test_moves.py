"""Drafters and verifiers are lost in the middle of a line, and the text is the toy target's own all the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from outrider.core.coordinate.drafter_state import DrafterState
from outrider.core.coordinate.session import DrafterLost, OpenDrafter, Session
from outrider.core.protocol.ending import Ending
from outrider.core.protocol.messages import DraftWindow, EndDrafts
from outrider.core.protocol.validation import RUN_AHEAD_MAX

from .drafters import HonestDrafter
from .scenario import Conduct
from .toys import EOS_TOKEN_ID
from .world import Link, World

NUM_SCHEDULES = 700

ACCIDENT_RATE = 0.02
"""How likely an event is an accident: a few in each line."""


class MovingWorld(World):
    """A world with pools: whoever dies is replaced, as long as the lot provides another."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.scenario = replace(self.scenario, conduct=Conduct.FAITHFUL, accident_at=-1)
        self.verify_open = replace(self.verify_open, expect_drafts=True)
        self.coordinator = Session(
            self.scenario.prompt,
            vocab_size=self.scenario.target.vocab_size,
            max_run_ahead=self.scenario.max_run_ahead,
            drafting=True,
            num_spare_drafters=3,
        )
        self.drafter = HonestDrafter(self.scenario, self.rng)
        self._open_verifier()
        self.num_drafters_replaced = 0
        self.num_verifiers_replaced = 0
        self.num_nodes_retold = 0
        self.num_pauses = 0

    def step(self) -> None:
        if self.rng.random() < ACCIDENT_RATE and self.coordinator.finish_reason is None:
            accidents = self._lose_drafter, self._lose_drafter_by_a_breach, self._lose_verifier, self._pause_or_resume
            self.rng.choice(accidents)()
        else:
            super().step()

    def _open_verifier(self) -> None:
        """At the end of the line as the coordinator has it."""
        self.verify_open = replace(self.verify_open, token_ids=tuple(self.coordinator.line.token_ids))
        self.open_verifier()

    def _lose_drafter(self) -> None:
        event = self.rng.choice((self.coordinator.on_drafter_lost, self.coordinator.on_drafter_refused))
        self._give_up_drafter(event("it is gone"))

    def _lose_drafter_by_a_breach(self) -> None:
        """It sends more than its credit: the nodes that were taken before it showed must leave no trace."""
        if self._drafter_heard():
            line = self.coordinator.line
            tokens = [self.rng.randrange(self.scenario.target.vocab_size) for _ in range(200)]
            first_id = self.coordinator._inbound._last_id + 1
            parents = [0, *range(first_id, first_id + 199)]
            broken = DraftWindow(len(line) - 1, first_id, parents, tokens, [-0.1] * 200)
            self._on_drafted(self.coordinator.on_drafted(broken))

    def _pause_or_resume(self) -> None:
        """Speculation does not pay, or pays again: what was drafted until then may still be under way."""
        if self.coordinator.on_paused("it does not pay"):
            self.num_pauses += 1
            self._close_links_of_drafter()
            self.links["coordinator->verifier"].queue.append(EndDrafts())
        elif (opening := self.coordinator.on_resumed()) is not None:
            self._replace_drafter(opening.credit)

    def _lose_verifier(self) -> None:
        """Whatever was under way from or to it is lost with it."""
        if not self._verifying:
            return
        for name in ("verifier->coordinator", "coordinator->verifier"):
            self.links[name] = Link()
        line = self.coordinator.line
        ending = Ending.of(self.verify_open, [EOS_TOKEN_ID])
        reason = ending.reason(line.token_ids[-1], len(line)) if line.num_generated_tokens else None
        if reason is not None:
            self._finish(reason)
            return
        self._open_verifier()
        self.num_verifiers_replaced += 1
        window = self.coordinator.on_verifier_changed()
        if window is not None:
            self.num_nodes_retold += len(window)
            self.links["coordinator->verifier"].queue.append(window)

    def _give_up_drafter(self, lost: DrafterLost | None) -> None:
        if lost is None:
            return
        self._close_links_of_drafter()
        if isinstance(lost, OpenDrafter):
            self._replace_drafter(lost.credit)
        else:
            self._end_drafts(lost)

    def _close_links_of_drafter(self) -> None:
        self.drafter = None
        for name in ("drafter->coordinator", "coordinator->drafter"):
            self.links[name] = Link()

    def _end_drafts(self, command: EndDrafts | None) -> None:
        assert command is not None
        self._drafts_ended = True
        self.links["coordinator->verifier"].queue.append(command)

    def _replace_drafter(self, credit: int) -> None:
        if self.rng.random() < 0.2:
            self._end_drafts(self.coordinator.on_no_drafter("there is no other"))
            return
        line = list(self.coordinator.line.token_ids)
        self.drafter = HonestDrafter(replace(self.scenario, prompt=line, max_run_ahead=credit), self.rng)
        self.num_drafters_replaced += 1

    def _deliver_drafted(self, window: DraftWindow) -> None:
        self._on_drafted(self.coordinator.on_drafted(window))

    def _check_credit(self) -> None:
        assert self.coordinator.tree.num_live <= RUN_AHEAD_MAX
        assert self._worker.sent.num_live <= RUN_AHEAD_MAX

    def _check_drafter(self) -> None:
        given_up = self.coordinator.drafter in (DrafterState.LOST, DrafterState.MISSED)
        is_paused = self.coordinator.drafter is DrafterState.PAUSED
        assert self._drafts_ended == given_up
        assert bool(self.coordinator.mode_reason) == (given_up or is_paused)

    def _check_statistics(self) -> None:
        found = self.coordinator.statistics
        assert found.num_committed_tokens == len(self.emitted)
        assert found.num_rollbacks == self._num_rollbacks
        assert sum(found.accepted_by_round) == found.num_accepted_tokens


def test_whoever_is_lost_the_text_is_the_targets_own() -> None:
    seen: Counter[object] = Counter()
    for seed in range(NUM_SCHEDULES):
        world = MovingWorld(seed)
        try:
            world.run()
        except Exception as error:
            pytest.fail(f"schedule {seed} went wrong, MovingWorld({seed}).run() replays it: {error!r}")
        seen[world.coordinator.drafter] += 1
        seen["drafters"] += world.num_drafters_replaced
        seen["verifiers"] += world.num_verifiers_replaced
        seen["pauses"] += world.num_pauses
        seen["nodes"] += world.num_nodes_retold
        seen["accepted"] += world.coordinator.statistics.num_accepted_tokens
        seen["looked up"] += world.num_verifiers_replaced > 0 < world.coordinator.statistics.num_prompt_lookup_tokens
    whats = ("drafters", "verifiers", "pauses", "nodes", "accepted", "looked up")
    wanted = (
        DrafterState.ACTIVE,
        DrafterState.REPLACED,
        DrafterState.LOST,
        DrafterState.MISSED,
        DrafterState.PAUSED,
        *whats,
    )
    assert min(seen[each] for each in wanted) >= 12, seen
