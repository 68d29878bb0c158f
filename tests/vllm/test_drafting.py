"""Lines on the event loop, with drafters that say what a test tells them to."""

from __future__ import annotations

import asyncio

import pytest

from outrider.core.protocol.messages import DraftWindow
from outrider.core.protocol.tree import SpeculationTree
from outrider.vllm import drafting
from outrider.vllm.chain import best_chain
from outrider.vllm.drafting import Drafting, RowStep
from outrider.vllm.limits import Limits
from tests.coordinator.memory import VOCAB_SIZE, MemoryLinks

LIMITS = Limits(vocab_size=VOCAB_SIZE, max_length=12, num_speculative_tokens=3, tree_width=0)
SOON = 5.0
"""Longer than anything here takes."""


class World:
    """A drafting of lines, its drafters, and what these were told."""

    def __init__(self, num_drafters: int = 2, keep_seconds: float = 60.0) -> None:
        self.notes: list[str] = []
        self.links = MemoryLinks(0, num_drafters, self.notes.append)
        self.drafting = Drafting(self.links, LIMITS, keep_seconds)

    async def step(self, *rows: RowStep, wait: float = 0.0) -> list[list[int]]:
        return await self.drafting.step(rows, 1.0, wait)

    async def settle(self) -> None:
        """Lets the loop do what is due."""
        for _ in range(20):
            await asyncio.sleep(0)


def new(number: int, *line: int) -> RowStep:
    return RowStep(number, line, line[-1:])


def known(number: int, *token_ids: int) -> RowStep:
    return RowStep(number, None, token_ids)


async def test_the_best_chain_of_what_has_come_is_proposed_and_what_was_decided_is_told() -> None:
    world = World()
    assert await world.step(new(1, 1, 2)) == [[]]
    world.links.drafters[0].inbox.say(world.links.drafters[0].guess([3, 4, 5, 6], 0))
    await world.settle()
    assert await world.step(known(1, 3)) == [[4, 5, 6]]
    assert await world.step(known(1, 4, 5, 9)) == [[]]
    assert world.notes == ["d1 < open 1,2, credit 32", "d1 < commit 3 at 2", "d1 < rollback 4,5,9 at 3"]
    await world.drafting.close()
    assert world.notes[-1] == "d1 closed"


async def test_no_chain_runs_over_the_longest_line() -> None:
    world = World()
    await world.step(new(1, *range(9)))
    world.links.drafters[0].inbox.say(world.links.drafters[0].guess([9, 10, 11, 12], 0))
    await world.settle()
    assert await world.step(known(1, 9)) == [[10]]
    await world.drafting.close()


async def test_a_step_waits_for_a_line_that_had_drafts_and_has_none() -> None:
    world = World()
    await world.step(new(1, 1, 2), wait=SOON)
    (drafter,) = world.links.drafters
    drafter.inbox.say(drafter.guess([3], 0))
    await world.settle()
    waiting = asyncio.ensure_future(world.step(known(1, 7), wait=SOON))
    await world.settle()
    assert not waiting.done()
    drafter.inbox.say(DraftWindow(2, 2, [0], [8], [-0.1]))
    assert await waiting == [[8]]
    await world.drafting.close()


async def test_a_line_that_was_waited_for_in_vain_is_not_waited_for_again() -> None:
    world = World()
    await world.step(new(1, 1, 2))
    (drafter,) = world.links.drafters
    drafter.inbox.say(drafter.guess([3], 0))
    await world.settle()
    assert await world.step(known(1, 7), wait=0.01) == [[]]
    assert await asyncio.wait_for(world.step(known(1, 8), wait=3600.0), SOON) == [[]]
    await world.drafting.close()


async def test_a_token_beyond_the_vocabulary_costs_the_drafter_its_line() -> None:
    world = World()
    await world.step(new(1, 1, 2))
    world.links.drafters[0].inbox.say(world.links.drafters[0].guess([VOCAB_SIZE], 0))
    await world.settle()
    assert await world.step(known(1, 3)) == [[]]
    assert world.notes[1:] == ["d1 closed, its fault", "d2 < open 1,2, credit 32", "d2 < rollback 3 at 2"]
    await world.drafting.close()


@pytest.mark.parametrize("line", [(1, -1), (1, VOCAB_SIZE), tuple(range(12))])
async def test_what_is_no_text_or_has_no_room_is_not_drafted_for(line: tuple[int, ...]) -> None:
    world = World()
    assert await world.step(RowStep(1, line, line[-1:])) == [[]]
    assert await world.step(known(1, 3)) == [[]]
    assert world.notes == []
    assert not world.drafting.closed
    await world.drafting.close()


async def test_a_prompt_that_is_being_read_is_opened_and_gets_no_chain() -> None:
    world = World()
    assert await world.step(RowStep(1, (1, 2), ())) == [[]]
    world.links.drafters[0].inbox.say(world.links.drafters[0].guess([3, 4], 0))
    await world.settle()
    assert await world.step(known(1)) == [[]]
    assert await world.step(known(1, 3)) == [[4]]
    await world.drafting.close()


async def test_a_line_that_is_left_out_is_closed_and_its_number_told() -> None:
    world = World(keep_seconds=0.0)
    await world.step(new(1, 1, 2), new(2, 5, 6))
    await world.step(known(2, 7))
    await world.settle()
    assert list(world.drafting.closed) == [1]
    assert world.notes[-1] == "d1 closed"
    await world.drafting.close()
    assert list(world.drafting.closed) == [1, 2]


async def test_without_steps_all_lines_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "IDLE_SECONDS", 0.0)
    world = World()
    await world.step(new(1, 1, 2), new(2, 5, 6))
    await world.settle()
    assert list(world.drafting.closed) == [1, 2]
    await world.drafting.close()


async def test_a_line_that_was_given_up_meanwhile_is_told_so() -> None:
    world = World()
    assert await world.step(known(4, 7)) == [[]]
    assert list(world.drafting.closed) == [4]
    await world.drafting.close()


def test_the_best_chain_promises_the_most_tokens() -> None:
    """A sure child with nothing below it is worth less than a likely one with a likely subtree."""
    tree = SpeculationTree(0, 1)
    tree.attach(tree.root, 2, -0.1)
    node = tree.attach(tree.root, 3, -0.3)
    for token_id in (4, 5, 6):
        assert node is not None
        node = tree.attach(node, token_id, -0.2)
    assert best_chain(tree, 3) == [3, 4, 5]
    assert best_chain(tree, 1) == [2]
    assert best_chain(tree, 0) == []
