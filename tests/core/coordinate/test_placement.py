"""Placement: sessions go where they are done first, and drafters are shared while that is worth it."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest

from outrider.core.coordinate.placement import (
    GROWTH_TOKENS,
    REPORTS_MIN,
    DrafterCandidate,
    ReplicaState,
    StepTime,
    choose_drafter,
    choose_verifier,
    contenders,
    expected_ms,
    level_ms,
    overload,
    place,
)
from outrider.core.protocol.messages import WorkerLoad
from outrider.core.protocol.validation import EXPANSIONS_MAX


def load(
    *, sessions: int = 0, queued: int = 0, tokens: int = 0, kv: int = 10_000, free: int = 10_000, step_ms: float = 10.0
) -> WorkerLoad:
    return WorkerLoad("", sessions, queued, tokens, kv, free, step_ms)


def paced(num_times: int = REPORTS_MIN, **step_ms: float) -> StepTime:
    """A pace that has seen the given step times, by number of sessions: `s3=7.0`."""
    step_time = StepTime()
    for name, each in step_ms.items():
        for _ in range(num_times):
            step_time.observe(load(sessions=int(name[1:]), step_ms=each))
    return step_time


def replica_state(
    report: WorkerLoad | None = None, step_time: StepTime | None = None, slots: int = 8, **own: int
) -> ReplicaState:
    return ReplicaState(step_time or paced(s1=10.0), load() if report is None else report, slots, **own)


def test_a_pace_is_learned_from_reports_with_sessions() -> None:
    step_time = StepTime()
    assert step_time.step_ms(1) == 0.0
    step_time.observe(load(sessions=0, step_ms=50.0))
    step_time.observe(load(sessions=3, step_ms=math.nan))
    assert step_time.step_ms(1) == 0.0
    step_time.observe(load(sessions=2, step_ms=20.0))
    assert step_time.step_ms(1) == pytest.approx(20.0)
    assert step_time.step_ms(2) == pytest.approx(20.0)
    assert step_time.step_ms(6) == pytest.approx(60.0), "beyond what was seen the worst is assumed"
    step_time.observe(load(sessions=6, step_ms=24.0))
    assert step_time.step_ms(6) == pytest.approx(24.0)
    assert 20.0 < step_time.step_ms(4) < 24.0


def test_sessions_are_those_reported_those_placed_since_less_those_that_left() -> None:
    assert replica_state(load(sessions=3, queued=2)).num_sessions == 5
    assert replica_state(load(sessions=3), num_own=2, num_recounted=1).num_sessions == 4
    assert replica_state(load(sessions=1), num_recounted=3).num_sessions == 0
    assert ReplicaState(StepTime(), None, 8, num_own=2).num_sessions == 2


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (replica_state(load(sessions=8)), "all of its 8 slots are taken"),
        (replica_state(load(sessions=6), num_own=2), "all of its 8 slots are taken"),
        (replica_state(load(sessions=6, queued=2)), "all of its 8 slots are taken"),
        (replica_state(load(sessions=1, free=99 + 2 * GROWTH_TOKENS)), "no room for the keys and values of 100 tokens"),
        (replica_state(load(queued=1, tokens=50, free=149 + 2 * GROWTH_TOKENS)), "no room for the keys and values"),
        (replica_state(load(free=149 + 2 * GROWTH_TOKENS), num_own=1, num_unreported_tokens=50), "no room for"),
        (ReplicaState(StepTime(), None, 2, num_own=2), "all of its 2 slots are taken"),
        (replica_state(load(sessions=7)), ""),
        (replica_state(load(sessions=8), num_recounted=1), ""),
        (replica_state(load(queued=1, tokens=50)), ""),
        (replica_state(load(sessions=1, free=100 + 2 * GROWTH_TOKENS)), ""),
        (replica_state(load(free=0)), ""),
        (replica_state(load(sessions=1, free=0), num_recounted=1), ""),
        (replica_state(load(kv=0, free=0)), ""),
    ],
)
def test_what_a_worker_lacks_is_said_in_words(there: ReplicaState, words: str) -> None:
    refusal = there.no_room(100)
    if words:
        assert refusal is not None
        assert words in refusal.text
    else:
        assert refusal is None


def test_the_least_loaded_of_equal_verifiers_is_chosen_and_the_first_of_idle_ones() -> None:
    busy, idle = replica_state(load(sessions=3)), replica_state()
    assert choose_verifier([busy, idle], 20, 100) == 1
    assert choose_verifier([idle, busy], 20, 100) == 0
    assert choose_verifier([idle, idle], 20, 100) == 0


def test_a_fast_verifier_takes_more_than_a_slow_one() -> None:
    """One is four times as fast: it gets four of five sessions."""
    slow, fast = paced(s1=40.0), paced(s1=10.0)
    placed = [0, 0]
    for _ in range(10):
        replica_states = [replica_state(step_time=(slow, fast)[n], slots=100, num_own=placed[n]) for n in range(2)]
        placed[choose_verifier(replica_states, 20, 100)] += 1
    assert placed == [2, 8]


def test_a_burst_spreads_before_any_report_tells() -> None:
    placed = [0, 0, 0]
    for _ in range(12):
        replica_states = [replica_state(num_own=n, num_unreported_tokens=50 * n) for n in placed]
        placed[choose_verifier(replica_states, 50, 100)] += 1
    assert placed == [4, 4, 4]


def test_long_prompts_that_wait_to_be_read_count() -> None:
    prefilling = replica_state(load(sessions=1, tokens=4000))
    assert choose_verifier([prefilling, replica_state(load(sessions=1))], 20, 100) == 1
    decoding = replica_state(load(sessions=2))
    assert choose_verifier([prefilling, decoding], 20, 10) == 1, "a short answer does not wait for a long prompt"


def test_a_queue_is_worse_than_a_slow_step() -> None:
    full = replica_state(load(sessions=4, queued=2, tokens=40), slots=4, step_time=paced(s1=10.0, s4=12.0))
    slower = replica_state(load(sessions=1), step_time=paced(s1=11.0))
    assert choose_verifier([full, slower], 20, 100) == 1
    without_room = replica_state(load(sessions=1, free=10))
    assert choose_verifier([without_room, slower], 20, 100) == 1


def test_who_waits_waits_for_those_before_him() -> None:
    first = replica_state(load(sessions=4), slots=4)
    second = replica_state(load(sessions=4, queued=1), slots=4)
    alone = expected_ms(replica_state(), 10.0, 0, 100)
    assert alone == pytest.approx(1000.0)
    assert expected_ms(first, 10.0, 0, 100) == pytest.approx(1000.0 * (1 + 1 / 4))
    assert expected_ms(second, 10.0, 0, 100) == pytest.approx(1000.0 * (1 + 2 / 4))


def test_a_verifier_of_unknown_speed_is_tried() -> None:
    unknown = ReplicaState(StepTime(), load(step_ms=0.0), 8)
    assert choose_verifier([replica_state(load(sessions=1)), unknown], 20, 100) == 1
    assert choose_verifier([unknown, unknown], 20, 100) == 0


def test_the_choice_is_a_function_of_what_is_known() -> None:
    replica_states = [replica_state(load(sessions=n % 4, tokens=10 * n)) for n in range(9)]
    assert len({choose_verifier(replica_states, 30, 100) for _ in range(20)}) == 1


def test_an_idle_drafter_is_never_overloaded_however_slow() -> None:
    assert overload(replica_state(load(), step_time=paced(s1=900.0)), 20, 10.0) is None


def test_a_drafter_is_not_shared_when_its_levels_come_too_late() -> None:
    in_time = replica_state(load(sessions=3), step_time=paced(s4=19.0))
    too_late = replica_state(load(sessions=3), step_time=paced(s4=21.0))
    assert overload(in_time, 20, 10.0) is None
    assert "21.0 ms for a level" in str(overload(too_late, 20, 10.0))
    assert overload(too_late, 20, 0.0) is None, "nobody knows how long the target takes"
    assert overload(replica_state(load(sessions=3), step_time=paced(REPORTS_MIN - 1, s4=21.0)), 20, 10.0) is None
    assert "slots" in str(overload(replica_state(load(sessions=8)), 20, 10.0))


def test_beyond_what_one_step_expands_sessions_take_turns() -> None:
    step_time = paced(s1=4.0, s64=4.0)
    few = replica_state(load(sessions=EXPANSIONS_MAX - 1), step_time=step_time, slots=100)
    many = replica_state(load(sessions=4 * EXPANSIONS_MAX - 1), step_time=step_time, slots=100)
    assert level_ms(few) == pytest.approx(4.0)
    assert level_ms(many) == pytest.approx(16.0)


def test_the_better_draft_is_chosen_while_it_keeps_up() -> None:
    small = DrafterCandidate(replica_state(load(sessions=1), step_time=paced(s2=2.0)), worth=2.0)
    assert choose_drafter([small, DrafterCandidate(replica_state(step_time=paced(s1=5.0)), worth=3.0)], 20.0) == 1
    slow = DrafterCandidate(replica_state(step_time=paced(s1=15.0)), worth=3.0)
    assert choose_drafter([slow, small], 20.0) == 1, "with 1.3 levels a step it commits no 3 tokens"
    assert choose_drafter([slow, small], 0.0) == 0


def test_whoever_places_all_sessions_itself_chooses_among_all() -> None:
    own = [replica_state(load(sessions=n), num_own=n, num_recounted=n) for n in range(9)]
    fresh = [replica_state(num_own=n) for n in range(9)]
    for states in (own, fresh, [replica_state()] * 9):
        assert sorted(contenders(states, random.Random(0).sample)) == [*range(9)]


def test_among_sessions_of_others_it_chooses_between_two() -> None:
    states = [replica_state(load(sessions=4))] * 9
    drawn = [contenders(states, random.Random(seed).sample) for seed in range(99)]
    assert {len(each) for each in drawn} == {2}
    assert {index for each in drawn for index in each} == {*range(9)}
    half = [replica_state(load(sessions=4), num_own=2, num_recounted=2)] * 10
    assert len(contenders(half, random.Random(0).sample)) == 6
    assert [*contenders(states[:2], random.Random(0).sample)] == [0, 1]
    assert [*contenders(states[:1], random.Random(0).sample)] == [0]


def test_coordinators_that_see_the_same_idle_verifier_do_not_all_choose_it() -> None:
    states = [replica_state(load(sessions=4))] * 15 + [replica_state()]
    placed = Counter[int]()
    for seed in range(64):
        placed[place(states, 20, 100, random.Random(seed).sample)] += 1
    assert placed[15] == placed.most_common(1)[0][1] < 16, "twice its share, not all of them"
    assert len(placed) > 12


def test_equal_drafters_share_the_sessions() -> None:
    placed = Counter[int]()
    for _ in range(9):
        candidates = [
            DrafterCandidate(replica_state(step_time=paced(s1=2.0, s8=2.0), num_own=placed[n]), 3.0) for n in range(3)
        ]
        placed[choose_drafter(candidates, 20.0)] += 1
    assert set(placed.values()) == {3}


def test_of_equal_drafters_the_one_that_fails_comes_last() -> None:
    candidates = [
        DrafterCandidate(replica_state(), 3.0, num_failures=1),
        DrafterCandidate(replica_state(load(sessions=2)), 3.0),
    ]
    assert choose_drafter(candidates, 1000.0) == 1


def test_every_choice_is_one_of_those_offered() -> None:
    reports = [None, load(step_ms=0.0), load(sessions=8), load(queued=3, tokens=10**9), load(kv=0, free=0)]
    for chosen in itertools.product(reports, repeat=3):
        replica_states = [ReplicaState(StepTime(), report, 8) for report in chosen]
        assert choose_verifier(replica_states, 1, 1) in range(3)
        assert choose_drafter([DrafterCandidate(each, 2.0) for each in replica_states], 0.0) in range(3)
