"""How many threads steps take: as many as make them fastest, by what steps on more and on fewer took."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("native_operators")

Seconds = Callable[[int], float]
"""What a step takes on so many threads."""


def choice(num_own: int, num_borrowed: int = 0) -> Any:
    return torch.classes.outrider_native.ThreadChoice(num_own, num_borrowed)


def taken(choice: Any, seconds: Seconds, num_steps: int, *, num_tokens: int = 1, num_wanted: int = 1) -> Sequence[int]:
    """The number of threads of each of some steps that are alike."""
    found: list[int] = []
    for _ in range(num_steps):
        found.append(choice.next(num_tokens, num_wanted))
        choice.observe(seconds(found[-1]))
    return found


def share_of(number: int, numbers: Sequence[int]) -> float:
    return numbers.count(number) / len(numbers)


def test_few_rows_begin_with_one_thread_and_prompts_with_all() -> None:
    choice_ = choice(4, 2)
    assert choice_.next(1, 1) == 1
    assert choice_.next(16, 16) == 1
    assert choice_.next(128, 2) == 6
    assert choice_.next(48, 48) == 1


def test_cores_are_borrowed_for_prompts_alone() -> None:
    choice_ = choice(1, 1)
    assert set(taken(choice_, lambda number: 1.0 / number, 500)) == {1}
    assert set(taken(choice_, lambda number: 1.0 / number, 50, num_tokens=256, num_wanted=16)) == {2}
    assert set(taken(choice_, lambda number: 1.0 / number, 50, num_tokens=256, num_wanted=48)) == {1}
    assert set(taken(choice_, lambda number: 1.0 / number, 50, num_tokens=32, num_wanted=2)) == {1}


@pytest.mark.parametrize(
    ("num_own", "seconds", "best"),
    [
        (2, lambda number: 1.0 / number**0.3, 2),
        (2, lambda number: 1.0 + 0.06 * number, 1),
        (2, lambda number: 1.0 - 0.02 * number, 1),
        (2, lambda number: 1.0 / number**0.15, 1),
        (32, lambda number: max(1.0 / number, 0.12) + 0.01 * number, 8),
        (6, lambda number: 1.0 / number, 6),
        (3, lambda number: 1.0 + number, 1),
    ],
    ids=["faster", "slower", "hardly faster", "not worth a core", "up to some", "all", "far slower"],
)
def test_the_fastest_number_is_found_and_kept(num_own: int, seconds: Seconds, best: int) -> None:
    choice_ = choice(num_own)
    taken(choice_, seconds, 64)
    assert share_of(best, taken(choice_, seconds, 4000)) > 0.9


def test_trials_cost_a_hundredth() -> None:
    """However much slower the other numbers are."""
    for factor in (1.2, 2.0, 10.0):
        choice_ = choice(2)
        taken(choice_, lambda number, factor=factor: factor if number == 2 else 1.0, 24)
        numbers = taken(choice_, lambda number, factor=factor: factor if number == 2 else 1.0, 12_000)
        assert sum(factor if number == 2 else 1.0 for number in numbers) < 1.02 * len(numbers)


def test_prompts_give_a_core_back_that_brings_nothing() -> None:
    choice_ = choice(1, 1)
    taken(choice_, lambda number: 1.0 if number == 1 else 1.1, 300, num_tokens=128, num_wanted=2)
    assert (
        share_of(1, taken(choice_, lambda number: 1.0 if number == 1 else 1.1, 500, num_tokens=128, num_wanted=2)) > 0.9
    )


def test_prompts_of_any_length_teach_the_same() -> None:
    """A short one on one thread is not faster than a long one on two."""
    choice_, lengths = choice(1, 1), random.Random(1)
    numbers: list[int] = []
    for _ in range(1000):
        length = lengths.randrange(64, 512)
        numbers.append(choice_.next(length, 2))
        choice_.observe(length / (1.8 if numbers[-1] == 2 else 1.0))
    assert share_of(2, numbers) > 0.97


def test_steps_that_scatter_do_not_make_it_waver() -> None:
    noise = random.Random(2)
    for advantage in (1.0, 0.97):
        choice_ = choice(2)
        numbers = taken(choice_, lambda n, a=advantage: (a if n == 2 else 1.0) * noise.gauss(1.0, 0.05), 20_000)
        usual = [numbers[at] for at in range(0, len(numbers), 16) if numbers[at] == numbers[at + 1]]
        changes = sum(one != other for one, other in pairwise(usual))
        assert changes < 20


def test_one_hiccup_decides_nothing() -> None:
    for at in range(12):
        choice_ = choice(2)
        times = iter([100.0 if index == at else 1.0 for index in range(12)])
        taken(choice_, lambda number, times=times: next(times) * (0.8 if number == 2 else 1.0), 12)
        assert choice_.next(1, 1) == 2


def test_a_machine_that_changes_is_followed() -> None:
    choice_ = choice(2)
    for _ in range(3):
        taken(choice_, lambda number: 1.0 / number, 1100)
        assert share_of(2, taken(choice_, lambda number: 1.0 / number, 200)) > 0.9
        taken(choice_, lambda number: 1.0 * number, 1100)
        assert share_of(1, taken(choice_, lambda number: 1.0 * number, 200)) > 0.9


def test_each_number_of_tokens_learns_by_itself_from_its_neighbours_choice() -> None:
    choice_ = choice(2)
    taken(choice_, lambda number: 1.0 / number, 64, num_tokens=4, num_wanted=4)
    assert taken(choice_, lambda number: 1.0 / number, 1, num_tokens=5, num_wanted=5) == [2]
    taken(choice_, lambda number: 1.0 * number, 64, num_tokens=5, num_wanted=5)
    assert taken(choice_, lambda number: 1.0 * number, 1, num_tokens=5, num_wanted=5) == [1]
    assert taken(choice_, lambda number: 1.0 / number, 1, num_tokens=4, num_wanted=4) == [2]
    assert taken(choice_, lambda number: 1.0 / number, 1, num_tokens=3, num_wanted=3) == [1]
