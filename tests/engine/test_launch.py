"""Launched and collected: steps in flight together compute what they compute one after the other."""

from __future__ import annotations

import pytest
import torch

from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.transfer import Fetched, mark, staged
from tests.engine.histories import random_line
from tests.engine.tiny_models import build

CPU = torch.device("cpu")


def engine(kv_tokens: int | None = None) -> Engine:
    return Engine(build("llama", layers=2), max_sessions=4, max_context=128, kv_tokens=kv_tokens)


def test_two_in_flight_are_two_in_turn() -> None:
    lines = [random_line(9, seed=1), random_line(14, seed=2)]
    in_turn, together = engine(), engine()
    expected = [in_turn.step([Job(in_turn.acquire(), line)]).logits for line in lines]
    tickets = [together.launch([Job(together.acquire(), line)]) for line in lines]
    for ticket, logits in zip(tickets, expected, strict=True):
        output = together.collect(ticket)
        assert output is ticket.output
        assert output.num_rows == [1]
        assert torch.equal(output.logits, logits)
        assert ticket.path == together.path == "eager"


def test_what_a_step_in_flight_feeds_is_there_for_the_next_one() -> None:
    """On the device everything happens in the order of the launches: a slot's own tree, and a prefix of others."""
    both = engine()
    line = random_line(100, seed=3)
    first, second = both.acquire(), both.acquire()
    tickets = [
        both.launch([Job(first, line)]),
        both.launch([Job(first, line, [LINE_END, 0], [5, 6], [LINE_END, 0, 1])]),
        both.launch([Job(second, line)]),
    ]
    assert second.num_cached_tokens > 0
    logits = [both.collect(ticket).logits for ticket in tickets]
    torch.testing.assert_close(logits[1][0], logits[0][0])
    torch.testing.assert_close(logits[2][0], logits[0][0])
    alone = engine()
    expected = alone.step([Job(alone.acquire(), [*line, 5, 6])]).logits
    torch.testing.assert_close(logits[1][2], expected[0])


def test_a_launch_that_fails_clears_its_own_slots_and_no_others() -> None:
    tight = engine(kv_tokens=128 + 256)
    kept, failing = tight.acquire(), tight.acquire()
    line = random_line(100, seed=4)
    ticket = tight.launch([Job(kept, line)])
    with pytest.raises(ValueError, match="cells of a slot"):
        tight.launch([Job(failing, random_line(128, seed=5), [LINE_END] * 300, range(300), range(300))])
    assert not failing.cached_prefix
    assert kept.cached_prefix == line
    assert tight.collect(ticket).logits.isfinite().all()


def test_on_a_cpu_nothing_is_queued_staged_or_waited_for() -> None:
    content = torch.arange(4)
    assert Fetched(content).wait() is content
    assert mark(CPU) is None
    assert staged(content, CPU) is content
    assert not engine().overlaps
