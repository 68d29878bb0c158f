"""The measurement: pass after pass, every load is put on every mode, in an order that keeps changing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from bench.compare.measuring import order
from bench.load.answer import Answer, read
from bench.load.client import LoadClient, Recording
from bench.load.loads import LoadLog, LoadSpan, until_idle
from bench.load.loops import beside, closed_loop, open_loop
from bench.load.options import LoadOptions
from bench.load.workload import ROUNDS_BESIDE_LONG, Shape, closed_work, open_work, requests
from bench.rivals.modes import Mode
from bench.stack.services import Pair
from bench.stack.step_log import StepSize
from outrider.core.protocol.errors import SlotsExhaustedError
from outrider.rpc.worker_client import DRAFT_SERVICE, VERIFY_SERVICE

PASSES_MIN = 3
"""Fewest passes: their differences tell how far figures can be trusted."""

LONG_ANSWER_TOKENS = 1
"""Tokens of an answer to a long prompt: how reading it disturbs others is what is asked, not one more that decodes."""

SERVICES = {"verify": VERIFY_SERVICE, "draft": DRAFT_SERVICE}
"""Full names of the workers' services, by kind."""


class Point(NamedTuple):
    """One load."""

    loop: Literal["closed", "open"]
    """Whether clients wait for their answers."""
    load: float
    """How many clients, or how many requests per second."""
    temperature: float
    long_prompt: int = 0
    """Tokens of the prompts of one more client; 0: there is none."""

    def __str__(self) -> str:
        load = f"{self.load:g} clients" if self.loop == "closed" else f"{self.load:g} requests/s"
        return f"{load} + long prompts" if self.long_prompt else load


class Step(NamedTuple):
    """One forward pass of the verifier."""

    milliseconds: float
    size: StepSize


class Pass(NamedTuple):
    """What one mode made of one load once."""

    point: Point
    mode: str
    number: int
    """Which pass. Answers of two modes are compared in the same one, at the same index."""
    answers: Sequence[Answer]
    steps: Sequence[Step]
    """The verifier's, between the first request and the last answer."""
    loads: Sequence[LoadSpan]
    """The verifier's, in that time."""
    long_answers: Sequence[Answer] = ()
    """Those to long prompts, which are not among `answers`."""

    @property
    def seconds(self) -> float:
        """From the first request that counts to the end of the last answer."""
        return max(answer.ended for answer in self.answers) - min(answer.sent for answer in self.answers)


class LoadedMode:
    """A mode of our services under load."""

    def __init__(self, mode: Mode, client: LoadClient, pair: Pair, loads: LoadLog) -> None:
        self._mode = mode
        self._client = client
        self._pair = pair
        self._loads = loads

    async def run(self, point: Point, corpus: Sequence[Sequence[int]], options: LoadOptions, number: int) -> Pass:
        """Pass `number` at `point`. Its requests follow from these two alone. Raises OutriderError."""
        await self._rest()
        await self._pair.choose(self._mode)
        await self._pair.take_log()
        shape = Shape(
            prompt_lengths=options.prompt_lengths,
            output_lengths=options.output_lengths,
            temperature=point.temperature,
        )
        async with contextlib.AsyncExitStack() as leaving:
            long: Sequence[Recording] = ()
            if point.long_prompt:
                long_shape = replace(shape, prompt_lengths=(point.long_prompt,), output_lengths=(LONG_ANSWER_TOKENS,))
                long = await leaving.enter_async_context(beside(self._client.ask, requests(corpus, long_shape, number)))
            if point.loop == "closed":
                num_rounds = ROUNDS_BESIDE_LONG if options.long_prompt else 1
                work = closed_work(corpus, shape, round(point.load), number, num_rounds)
                recordings = await closed_loop(self._client.ask, work)
            else:
                work = open_work(corpus, shape, point.load, options.rate_seconds, number)
                recordings = await open_loop(self._client.ask, work)
        await self._rest()
        for each in long:
            if each.error is not None and not isinstance(each.error, SlotsExhaustedError):
                raise each.error
        answers = list(map(read, recordings))
        start, end = min(answer.sent for answer in answers), max(answer.ended for answer in answers)
        log = (await self._pair.take_log())["verify"]
        steps = [
            Step((last - first) / 1e6, StepSize(*size))
            for (first, last), size in zip(log["passes"], log["sizes"], strict=True)
            if start <= first / 1e9 and last / 1e9 <= end
        ]
        loads = self._loads.between(start, end)
        return Pass(point, self._mode.name, number, answers, steps, loads, list(map(read, long)))

    async def _rest(self) -> None:
        """Returns when no session is left at the workers."""
        for kind, address in self._pair.addresses.items():
            await until_idle(address, SERVICES[kind])


def points(options: LoadOptions) -> list[Point]:
    """Every load that is measured; with long prompts right after the same without."""
    found: list[Point] = []
    for temperature in options.temperatures:
        found += [Point("closed", num_clients, temperature) for num_clients in options.concurrency]
        found += [Point("open", rate, temperature) for rate in options.rates]
    long_prompts = (0, options.long_prompt) if options.long_prompt else (0,)
    return [point._replace(long_prompt=long_prompt) for point in found for long_prompt in long_prompts]


async def measure(
    modes: Mapping[str, LoadedMode],
    corpus: Sequence[Sequence[int]],
    options: LoadOptions,
    on_progress: Callable[[str], None],
) -> list[Pass]:
    """Passes over all points until the time is over. `on_progress` is told what comes next.

    A pass puts a load on all modes before it goes on to the next, and the order changes, so that a machine whose speed
    drifts does so for all. Policies learn from the heaviest load first, which is not counted. Raises OutriderError.
    """
    every_point = points(options)
    heaviest = max(every_point, key=lambda point: (point.loop == "closed", point.load, point.long_prompt))
    for name, mode in modes.items():
        on_progress(f"warming up: {heaviest}, {name}")
        await mode.run(heaviest, corpus, options, -1)
    passes: list[Pass] = []
    longest = 0.0
    started = time.monotonic()
    number = 0
    while number < PASSES_MIN or time.monotonic() + longest < started + options.minutes * 60.0:
        began = time.monotonic()
        for index, point in enumerate(every_point):
            for name in order(list(modes), number + index):
                on_progress(f"pass {number + 1}: {point}, {name}")
                passes.append(await modes[name].run(point, corpus, options, number))
        longest = max(longest, time.monotonic() - began)
        number += 1
    return passes
