"""Whose turn it is: deadlines first, arrivals next, and nobody is overtaken for ever."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.schedule.queue import OVERTAKEN_MAX, Priority, WaitingQueue, overtake

DEADLINES = st.one_of(st.just(math.inf), st.floats(0.0, 100.0))


@dataclass(eq=False)
class One:
    priority: Priority


def queue_of(*deadlines: float) -> tuple[WaitingQueue[One], list[One]]:
    """A queue of sessions in the order of their arrival, and they."""
    queue: WaitingQueue[One] = WaitingQueue()
    ones = [One(Priority(arrival, deadline)) for arrival, deadline in enumerate(deadlines, 1)]
    for one in ones:
        queue.join(one)
    return queue, ones


def test_without_deadlines_the_first_to_come_is_the_first_to_be_served() -> None:
    queue, ones = queue_of(math.inf, math.inf, math.inf)
    assert [queue.serve_next() for _ in ones] == ones
    assert queue.next is None
    with pytest.raises(IndexError):
        queue.serve_next()


def test_the_nearest_deadline_goes_first() -> None:
    queue, (patient, late, early) = queue_of(math.inf, 9.0, 5.0)
    assert [queue.serve_next() for _ in range(3)] == [early, late, patient]


def test_who_leaves_is_not_served() -> None:
    queue, (first, second, third) = queue_of(math.inf, math.inf, math.inf)
    queue.leave(second)
    assert second not in queue
    assert list(queue) == [first, third]
    with pytest.raises(ValueError, match="not in list"):
        queue.leave(second)


def test_who_was_sent_back_comes_before_all_that_wait() -> None:
    queue, (_, early) = queue_of(math.inf, 1.0)
    back = One(Priority(3))
    back.priority.put_first()
    queue.join(back)
    assert queue.next is back
    first_back = One(Priority(0))
    first_back.priority.put_first()
    queue.join(first_back)
    assert [queue.serve_next() for _ in range(3)] == [first_back, back, early]


@given(st.lists(st.tuples(DEADLINES, st.integers(0, 2)), max_size=200))
def test_nobody_is_overtaken_more_often_than_is_allowed(arrivals: list[tuple[float, int]]) -> None:
    """Sessions come with any deadlines; after each, some are served."""
    queue: WaitingQueue[One] = WaitingQueue()
    numbers = count(1)
    num_overtaken: dict[One, int] = {}
    for deadline, num_served in arrivals:
        newcomer = One(Priority(next(numbers), deadline))
        queue.join(newcomer)
        num_overtaken[newcomer] = 0
        for _ in range(min(num_served, len(queue))):
            served = queue.serve_next()
            for waiting in queue:
                num_overtaken[waiting] += waiting.priority.arrival < served.priority.arrival
    # While one waits that may not be overtaken, others that came before it and wait likewise may still go.
    assert all(num <= OVERTAKEN_MAX for num in num_overtaken.values())
    assert [one.priority.order for one in queue] == sorted(one.priority.order for one in queue)


def test_being_served_together_is_not_being_overtaken() -> None:
    first, second, third = Priority(1), Priority(2), Priority(3)
    assert not overtake([first, third], [second])
    assert second.num_overtaken == 1
    assert not overtake([first], [second, third])
    assert (second.num_overtaken, third.num_overtaken) == (1, 0)
    assert not overtake([], [second])
    second.num_overtaken = OVERTAKEN_MAX - 1
    assert overtake([third], [second])
