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
    delay_ms: float = 0.0
    """How much longer messages between a coordinator and its workers take each way."""

    def __str__(self) -> str:
        load = f"{self.load:g} clients" if self.loop == "closed" else f"{self.load:g} requests/s"
        late = f", messages {self.delay_ms:g} ms late" if self.delay_ms else ""
        return f"{load}{' + long prompts' if self.long_prompt else ''}{late}"


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

    def __init__(self, mode: Mode, clients: Mapping[float, LoadClient], pair: Pair, loads: LoadLog) -> None:
        """`clients` are of the coordinator of each delay."""
        self._mode = mode
        self._clients = clients
        self._pair = pair
        self._loads = loads

    async def run(
        self, point: Point, corpus: Sequence[Sequence[int]], options: LoadOptions, number: int, num_rounds: int
    ) -> Pass:
        """Pass `number` at `point`, in which each client of a closed loop asks `num_rounds` times. Its requests follow
        from these alone. Raises OutriderError."""
        client = self._clients[point.delay_ms]
        await self._rest()
        await self._pair.choose(self._mode, point.delay_ms)
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
                long = await leaving.enter_async_context(beside(client.ask, requests(corpus, long_shape, number)))
            if point.loop == "closed":
                work = closed_work(corpus, shape, round(point.load), number, num_rounds)
                recordings = await closed_loop(client.ask, work)
            else:
                work = open_work(corpus, shape, point.load, options.rate_seconds, number)
                recordings = await open_loop(client.ask, work)
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


class Sweep(NamedTuple):
    """What is measured, and how often."""

    points: Sequence[Point]
    num_rounds: Callable[[Point], int]
    """How often each client of a closed loop asks in a pass."""
    passes_min: int = PASSES_MIN
    """Fewest passes."""


def sweep_of(options: LoadOptions) -> Sweep:
    """Every load that the options name. Passes with long prompts and without are compared, so they last as long."""
    num_rounds = ROUNDS_BESIDE_LONG if options.long_prompt else 1
    return Sweep(points(options), lambda point: num_rounds)


def points(options: LoadOptions) -> list[Point]:
    """Every load that is measured; with long prompts right after the same without."""
    found: list[Point] = []
    for temperature in options.temperatures:
        found += [Point("closed", num_clients, temperature) for num_clients in options.concurrency]
        found += [Point("open", rate, temperature) for rate in options.rates]
    long_prompts = (0, options.long_prompt) if options.long_prompt else (0,)
    return [
        point._replace(long_prompt=long_prompt, delay_ms=delay_ms)
        for delay_ms in options.delays_ms
        for point in found
        for long_prompt in long_prompts
    ]


async def measure(
    modes: Mapping[str, LoadedMode],
    corpus: Sequence[Sequence[int]],
    options: LoadOptions,
    sweep: Sweep,
    on_progress: Callable[[str], None],
) -> list[Pass]:
    """Passes over all points of `sweep` until the time is over. `on_progress` is told what comes next.

    A pass puts a load on all modes before it goes on to the next, and the order changes, so that a machine whose speed
    drifts does so for all. Policies learn from the heaviest load of each delay first, which is not counted. Raises
    OutriderError.
    """
    for delay_ms in options.delays_ms:
        heaviest = max(
            (point for point in sweep.points if point.delay_ms == delay_ms),
            key=lambda point: (point.loop == "closed", point.load, point.long_prompt),
        )
        for name, mode in modes.items():
            on_progress(f"warming up: {heaviest}, {name}")
            await mode.run(heaviest, corpus, options, -1, sweep.num_rounds(heaviest))
    passes: list[Pass] = []
    longest = 0.0
    started = time.monotonic()
    number = 0
    while number < sweep.passes_min or time.monotonic() + longest < started + options.minutes * 60.0:
        began = time.monotonic()
        for index, point in enumerate(sweep.points):
            for name in order(list(modes), number + index):
                on_progress(f"pass {number + 1}: {point}, {name}")
                passes.append(await modes[name].run(point, corpus, options, number, sweep.num_rounds(point)))
        longest = max(longest, time.monotonic() - began)
        number += 1
    return passes
