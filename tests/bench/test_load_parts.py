"""What a load consists of and what is read from it: schedules, percentiles, times between tokens, memory."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

import pytest

from bench.compare.resampling import compare_passes
from bench.load.answer import Answer, read
from bench.load.client import Recording
from bench.load.loops import beside, closed_loop, lasting_loop, open_loop
from bench.load.measuring import PASSES_MIN, Point, sweep_of
from bench.load.memory import GROWTH_MAX, SAMPLES_MIN, Sample, growth, resident_bytes
from bench.load.objective import Objective
from bench.load.options import LoadOptions
from bench.load.percentiles import percentile, percentiles
from bench.load.workload import (
    MEASURED_MIN,
    ROUNDS_BESIDE_LONG,
    ClosedWork,
    OpenWork,
    Request,
    Shape,
    closed_work,
    open_work,
    requests,
)
from outrider.client import GREEDY
from outrider.core.protocol.errors import SlotsExhaustedError, StepFailedError
from outrider.v1 import generation_pb2

CORPUS = [[100 * text + place for place in range(20)] for text in range(5)]
SHAPE = Shape(prompt_lengths=(4, 30), output_lengths=(8, 16), temperature=0.8)


def recording(*groups: tuple[float, int], sent: float = 0.0, finished: bool = True) -> Recording:
    """An answer whose tokens came in `groups` of (seconds, how many)."""
    found = Recording(sent, ended=groups[-1][0] if groups else sent)
    for arrived, count in groups:
        tokens = [generation_pb2.GeneratedToken(token_id=7)] * count
        found.arrivals.append(arrived)
        found.messages.append(
            generation_pb2.GenerateResponse(tokens=generation_pb2.GeneratedTokens(tokens=tokens)).SerializeToString()
        )
    if finished:
        statistics = generation_pb2.SpeculationStatistics(num_rounds=len(groups))
        found.arrivals.append(found.ended + 1.0)
        found.messages.append(
            generation_pb2.GenerateResponse(
                finished=generation_pb2.GenerateFinished(speculation=statistics)
            ).SerializeToString()
        )
    return found


def answer(*groups: tuple[float, int], sent: float = 0.0) -> Answer:
    return read(recording(*groups, sent=sent))


# Percentiles


def test_a_percentile_is_the_nearest_rank() -> None:
    values = [(float(value), 1) for value in random.Random(0).sample(range(1, 101), 100)]
    assert [percentile(values, share) for share in (0.01, 0.5, 0.9, 0.99, 1.0)] == [1.0, 50.0, 90.0, 99.0, 100.0]
    assert percentile([(3.0, 1)], 0.99) == 3.0


def test_an_observation_counts_as_often_as_it_was_made() -> None:
    weighted = [(1.0, 9), (5.0, 1)]
    assert percentiles(weighted) == {"p50": 1.0, "p90": 1.0, "p99": 5.0}
    assert percentiles(weighted) == percentiles([(1.0, 1)] * 9 + [(5.0, 1)])
    assert percentiles([]) is None
    with pytest.raises(ValueError, match="no observation"):
        percentile([], 0.5)


# Times between tokens


def test_tokens_of_a_round_share_its_time() -> None:
    one = answer((1.0, 1), (1.1, 1), (1.4, 3), (1.5, 2), sent=0.5)
    assert one.first_token_ms == pytest.approx(500.0)
    assert one.total_ms == pytest.approx(1000.0), "the end of the stream is not a token"
    assert list(one.inter_token_ms()) == [
        (pytest.approx(100.0), 1),
        (pytest.approx(100.0), 3),
        (pytest.approx(50.0), 2),
    ]
    assert one.max_gap_ms == pytest.approx(300.0)
    assert one.mean_inter_token_ms == pytest.approx(500.0 / 6)
    assert one.num_tokens == 7
    assert one.num_rounds == 4


def test_the_mean_between_tokens_is_that_of_its_parts() -> None:
    rng = random.Random(3)
    times = list(itertools.accumulate(rng.uniform(0.01, 0.2) for _ in range(30)))
    one = answer(*((time, rng.randint(1, 5)) for time in times))
    parts = [ms for ms, count in one.inter_token_ms() for _ in range(count)]
    assert fmean(parts) == pytest.approx(one.mean_inter_token_ms)


def test_an_answer_of_one_group_has_no_time_between_tokens() -> None:
    one = answer((1.0, 4))
    assert list(one.inter_token_ms()) == []
    assert one.mean_inter_token_ms == one.max_gap_ms == 0.0


def test_an_answer_is_good_if_it_is_complete_and_soon_enough() -> None:
    one = answer((1.0, 1), (1.2, 2))  # 1000 ms, then 100 ms a token
    assert one.keeps(Objective(1001.0, 101.0))
    assert not one.keeps(Objective(999.0, 101.0))
    assert not one.keeps(Objective(1001.0, 99.0))
    broken = recording((1.0, 1), finished=False)
    broken.error = StepFailedError("")
    assert not read(broken).keeps(Objective(1e9, 1e9))
    refused = Recording(0.0, error=SlotsExhaustedError(""))
    assert not read(refused).keeps(Objective(1e9, 1e9))
    assert read(refused).num_tokens == 0


@pytest.mark.parametrize(
    ("mode", "reason", "undrafted"),
    [
        ("TARGET_ONLY", "busy", True),
        ("TARGET_ONLY", "", False),
        ("DEGRADED", "lost", False),
        ("SPECULATIVE", "", False),
    ],
)
def test_an_answer_is_without_drafts_if_a_drafter_was_wanted_and_none_was_had(
    mode: str, reason: str, undrafted: bool
) -> None:
    one = recording((1.0, 1), finished=False)
    finished = generation_pb2.GenerateFinished(mode=f"GENERATION_MODE_{mode}", mode_reason=reason)
    one.arrivals.append(2.0)
    one.messages.append(generation_pb2.GenerateResponse(finished=finished).SerializeToString())
    assert read(one).undrafted == undrafted


# Workloads


def test_requests_follow_from_their_seed_and_repeat_no_text_before_all_were_asked() -> None:
    first, again, other = (list(itertools.islice(requests(CORPUS, SHAPE, seed), 10)) for seed in (1, 1, 2))
    assert first == again != other
    assert {len(request.token_ids) for request in first} == set(SHAPE.prompt_lengths)
    assert {request.max_tokens for request in first} == set(SHAPE.output_lengths)
    beginnings = [request.token_ids[0] for request in first]
    assert sorted(beginnings[:5]) == sorted(beginnings[5:]) == [text[0] for text in CORPUS]
    assert len({request.sampling.seed for request in first}) == 10


def test_a_prompt_longer_than_its_text_goes_on_with_the_next() -> None:
    longest = Shape(prompt_lengths=(45,), output_lengths=(1,), temperature=0.0)
    for request in itertools.islice(requests(CORPUS, longest, 0), 5):
        first = request.token_ids[0] // 100
        expected = [token for text in range(first, first + 3) for token in CORPUS[text % 5]][:45]
        assert request.token_ids == expected


def test_clients_begin_one_after_another() -> None:
    work = closed_work(CORPUS, SHAPE, 8, seed=0)
    assert work.lead_in[0] is None, "the first begins with what counts"
    assert len(work.lead_in) == len(work.measured) == len(work.fillers) == 8
    lengths = [request.max_tokens for request in work.lead_in if request is not None]
    assert lengths[0] <= max(SHAPE.output_lengths) / 8
    assert lengths[-1] >= min(SHAPE.output_lengths) * 7 // 8
    assert len(closed_work(CORPUS, SHAPE, 1, seed=0).measured) == MEASURED_MIN
    assert len(closed_work(CORPUS, SHAPE, 8, seed=0, num_rounds=3).measured) == 24


def test_arrivals_are_those_of_a_poisson_process() -> None:
    work = open_work(CORPUS, SHAPE, rate=50.0, seconds=200.0, seed=4)
    assert work == open_work(CORPUS, SHAPE, rate=50.0, seconds=200.0, seed=4)
    gaps = [later - earlier for earlier, later in itertools.pairwise(work.arrivals)]
    assert len(work.arrivals) == len(work.measured) == 10_000
    assert work.arrivals[0] == 0.0
    assert fmean(gaps) == pytest.approx(1 / 50.0, rel=0.05)
    # Exponential gaps: as spread as they are long, and one in e longer than the mean.
    assert fmean((gap - fmean(gaps)) ** 2 for gap in gaps) ** 0.5 == pytest.approx(fmean(gaps), rel=0.05)
    assert sum(gap > fmean(gaps) for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)
    assert len(open_work(CORPUS, SHAPE, rate=0.01, seconds=1.0, seed=0).arrivals) == 1


# Loops


class Server:
    """Answers when told to."""

    def __init__(self) -> None:
        self.running: dict[int, asyncio.Future[None]] = {}
        self.asked: list[int] = []
        self.num_most = 0
        self._changed = asyncio.Event()

    async def ask(self, request: Request) -> Recording:
        """Waits for `answer`."""
        name = request.max_tokens
        self.asked.append(name)
        self.running[name] = asyncio.get_running_loop().create_future()
        self.num_most = max(self.num_most, len(self.running))
        self._changed.set()
        try:
            await self.running[name]
        finally:
            del self.running[name]
        return Recording(float(name))

    def answer(self, name: int) -> None:
        """Answers what is under way."""
        self.running[name].set_result(None)

    async def until_running(self, *names: int) -> None:
        """Returns when just these are under way."""
        while self.running.keys() != set(names):
            self._changed.clear()
            await self._changed.wait()


def named(names: Sequence[int]) -> list[Request]:
    return [Request([1], name, GREEDY) for name in names]


async def test_a_closed_loop_keeps_its_load_until_the_last_answer_that_counts() -> None:
    server = Server()
    work = ClosedWork([None, *named([1])], named([10, 11, 12]), named([20, 21]))
    loop = asyncio.create_task(closed_loop(server.ask, work))
    await server.until_running(1, 10)
    server.answer(1)
    await server.until_running(10, 11)
    server.answer(11)
    await server.until_running(10, 12)
    server.answer(10)
    await server.until_running(12, 20)
    server.answer(20)
    await server.until_running(12, 21)
    server.answer(12)
    assert [each.sent for each in await loop] == [10.0, 11.0, 12.0]
    assert server.running == {}, "what does not count is cancelled"
    assert server.num_most == 2


async def test_an_open_loop_waits_for_no_answer() -> None:
    server = Server()
    loop = asyncio.create_task(open_loop(server.ask, OpenWork([0.0, 0.001, 0.002], named([1, 2, 3]))))
    await server.until_running(1, 2, 3)
    for name in (3, 1, 2):
        server.answer(name)
    assert [each.sent for each in await loop] == [1.0, 2.0, 3.0]
    assert server.asked == [1, 2, 3]


async def test_a_lasting_loop_lets_its_last_answers_come() -> None:
    server, answers = Server(), list[float]()
    loop = asyncio.create_task(
        lasting_loop(server.ask, named([1, 2, 3]), 2, 60.0, lambda recording: answers.append(recording.sent))
    )
    await server.until_running(1, 2)
    server.answer(2)
    await server.until_running(1, 3)
    server.answer(1)
    server.answer(3)
    await loop
    assert sorted(answers) == [1.0, 2.0, 3.0]


async def test_one_more_client_asks_one_after_another_until_the_others_are_done() -> None:
    server = Server()
    async with beside(server.ask, named([1, 2, 3])) as recordings:
        await server.until_running(1)
        server.answer(1)
        await server.until_running(2)
    assert [each.sent for each in recordings] == [1.0]
    assert server.running == {}, "what is under way is cancelled"
    assert server.asked == [1, 2]


# Ratios over passes


def test_a_ratio_over_passes_is_that_of_sums() -> None:
    passes = [[(2.0, 1.0), (4.0, 2.0)], [(6.0, 3.0)]]
    assert compare_passes(passes) == pytest.approx((2.0, 2.0, 2.0))
    with pytest.raises(ValueError, match="no pair"):
        compare_passes([[], []])


def test_a_disturbance_of_a_whole_pass_widens_the_interval() -> None:
    """Many pairs do not make up for few passes."""
    rng = random.Random(5)
    steady = [[(2.0 * rng.uniform(0.95, 1.05), 1.0) for _ in range(24)] for _ in range(4)]
    disturbed = [
        [(a * factor, b) for a, b in pairs] for pairs, factor in zip(steady, (0.8, 1.2, 0.9, 1.1), strict=True)
    ]
    narrow, wide = compare_passes(steady), compare_passes(disturbed)
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)
    assert wide.low < 2.0 < wide.high


# Memory

SOAK_SECONDS = 600
ANSWERS_PER_SECOND = 20.0


def soaked(held: Callable[[float], float], *, noise: float = 2e5) -> list[Sample]:
    """A sample a second of a service of 100 MB that holds `held(seconds)` bytes more, with an allocator's unrest."""
    rng = random.Random(6)
    return [
        Sample(float(second), int(1e8 + held(second) + rng.uniform(-noise, noise))) for second in range(SOAK_SECONDS)
    ]


def filling(second: float) -> float:
    """Caches: most of 130 MB in the first two minutes, the last of it in the fifth."""
    return 1.1e8 * min(second / 120, 1.0) + 2e7 * min(second / 290, 1.0)


def test_memory_that_stays_is_flat() -> None:
    found = growth(soaked(lambda _: 0.0))
    assert found.flat
    assert abs(found.growth_bytes) < GROWTH_MAX / 4


def test_memory_that_fills_up_and_stays_is_flat_and_all_of_it_is_told() -> None:
    found = growth(soaked(filling))
    assert found.flat
    assert found.first_bytes < 1.02e8 < 2.28e8 < found.warm_bytes
    assert found.last_bytes <= found.max_bytes
    late = growth(soaked(lambda second: filling(second - SOAK_SECONDS / 2)))
    assert not late.flat, "what still fills up is not known to stop"


@pytest.mark.parametrize("held", [lambda _: 0.0, filling], ids=["level", "filling"])
def test_memory_that_leaks_is_not_flat(held: Callable[[float], float]) -> None:
    bytes_per_answer = 1.25 * GROWTH_MAX / SOAK_SECONDS / ANSWERS_PER_SECOND
    found = growth(soaked(lambda second: held(second) + bytes_per_answer * ANSWERS_PER_SECOND * second))
    assert not found.flat
    assert found.growth_bytes == pytest.approx(1.25 * GROWTH_MAX, rel=0.05)


def test_memory_that_grows_by_steps_is_not_flat() -> None:
    step_seconds = 45
    found = growth(soaked(lambda second: second // step_seconds * 1.5 * GROWTH_MAX * step_seconds / SOAK_SECONDS))
    assert not found.flat
    assert found.growth_bytes == pytest.approx(1.5 * GROWTH_MAX, rel=0.2)


def test_a_lump_is_taken_once_and_a_saw_gives_back_what_it_takes() -> None:
    assert growth(soaked(lambda second: 1e7 * (second > 540))).flat
    assert growth(soaked(lambda second: 1e7 * (second % 40) / 40)).flat
    assert growth(soaked(lambda _: 0.0, noise=2e6)).flat


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="soak longer"):
        growth(soaked(lambda _: 0.0)[: 2 * SAMPLES_MIN - 2])


def test_a_process_tells_its_memory() -> None:
    assert 1e6 < resident_bytes(os.getpid()) < 1e12


def test_every_load_is_measured_over_every_network_and_beside_long_prompts() -> None:
    options = LoadOptions(concurrency=(1,), rates=(2.0,), temperatures=(0.8,), long_prompt=99, delays_ms=(0.0, 5.0))
    sweep = sweep_of(options)
    closed, opened = Point("closed", 1, 0.8), Point("open", 2.0, 0.8)
    assert sweep.points == [
        each._replace(long_prompt=long_prompt, delay_ms=delay_ms)
        for delay_ms in (0.0, 5.0)
        for each in (closed, opened)
        for long_prompt in (0, 99)
    ]
    assert {sweep.num_rounds(point) for point in sweep.points} == {ROUNDS_BESIDE_LONG}
    assert sweep.passes_min == PASSES_MIN
    assert {sweep_of(replace(options, long_prompt=0)).num_rounds(point) for point in sweep.points} == {1}
