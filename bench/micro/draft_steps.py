"""What a level of a draft costs beside its bare forward pass, by number of sessions: the real drafter on one thread.

`python -m bench.micro.draft_steps` prints a table. No services run, so nothing else wants the core. Levels are drafted
as steps and as runs, commit by commit in turn, and it is processor time that is measured.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from rich.console import Console
from tokenizers import Tokenizer
from torch import Tensor

from bench.columns import new_table
from bench.micro.steps import load_engine
from bench.prompts import load_prompts
from draft_service.config import DraftConfig
from draft_service.drafter import Drafter, DraftStream
from draft_service.drafts import DraftEvent
from outrider.core.draft.session import DraftSession
from outrider.core.protocol.messages import Commitment, DraftOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.validation import RUN_AHEAD_MAX
from outrider.core.schedule.draft_run import LEVELS_MAX, Level
from outrider.engine.attention.native import NativeAttention
from outrider.engine.batch import as_it_is
from outrider.engine.compile.forward import GraphForward
from outrider.engine.compile.levels import DraftLevels
from outrider.engine.engine import Engine, Ticket
from outrider.engine.jobs import Job
from outrider.engine.load.folder import tokenizer_file
from outrider.machine.garbage import pass_over_loaded
from outrider.worker.outbox import Outbox
from outrider.worker.step_runner import StepRunner

NUM_ROUNDS = 48
"""Commits of an answer: half of them with steps after them, half with runs. Half of either are misses."""

NUM_ANSWERS = 6
"""Answers of each session, one after the other, each of so many rounds. The first one is not counted: in it the drafter
learns how long its steps take, and everything is touched for the first time."""

LEVELS_PER_ROUND = 8
"""Levels between two commits, which all sessions get at once: about as many as fit beside a step of the wide
target."""

COMMITTED_TOKENS = 3
"""Tokens of each commit, the draft's likeliest, as many as a round of the wide target commits. The last one of a miss
is none that the draft has guessed."""

VERIFY_MS = 20.0
PROBABILITY_MIN = 0.05
REPORT_MS = 1.0
"""What commits tell of the target, and since when the round might not be told anything any more."""


def main(
    draft: Annotated[Path, typer.Option(help="Folder of the draft model.")] = Path("models/draft"),
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    sessions: Annotated[str, typer.Option(help="Numbers of sessions.")] = "1,4,8,16",
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.8,
    weights: Annotated[str, typer.Option(help="The drafter's --weights: auto, full or int8.")] = "auto",
) -> None:
    """Measures levels of a drafter whose sessions all have something to draft."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    numbers = [int(number) for number in sessions.split(",")]
    engine = load_engine(draft, dtype, compiled=True, max_sessions=max(numbers), kind=DraftConfig, weights=weights)
    tokenizer = Tokenizer.from_file(str(tokenizer_file(draft)))
    title = f"{draft.name}, {dtype}, weights {weights}, temperature {temperature:g}: processor ms per level of a draft"
    table = new_table(title, "levels", "nodes", "bare pass", "level", "level / bare pass")
    meter = Meter(engine)
    drafter = Drafter(engine, runner=lambda _: meter)
    pass_over_loaded()
    with torch.inference_mode():
        for num_sessions in numbers:
            prompts = load_prompts(None, num_sessions, tokenizer)
            for number in range(NUM_ANSWERS):
                asyncio.run(_draft(drafter, meter, prompts, temperature))
                if number == 0:
                    meter.clear()
            for arm in (STEPS, RUNS):
                name = f"{num_sessions} session{'s' * (num_sessions > 1)}, {arm}"
                costs = meter.costs(arm)
                ratio = costs.level_ms / costs.bare_ms
                table.add_row(
                    name,
                    str(costs.num_levels),
                    f"{costs.num_nodes:.1f}",
                    f"{costs.bare_ms:.3f}",
                    f"{costs.level_ms:.3f}",
                    f"{ratio:.2f}",
                )
            meter.clear()
    Console().print(table)


STEPS, RUNS = "as steps", "as runs"


class Costs(NamedTuple):
    """Means over the levels of an arm."""

    num_levels: int
    num_nodes: float
    """Expanded in a level."""
    bare_ms: float
    """The graph alone over as many nodes, its inputs made beforehand."""
    level_ms: float
    """All that the drafter does for a level, commits included."""


class Meter(StepRunner):
    """Runs a drafter's steps, counts their levels, and times bare passes over as many nodes."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._sizes: dict[str, list[int]] = defaultdict(list)
        self._seconds: dict[str, float] = defaultdict(float)
        self._bare: dict[int, list[float]] = defaultdict(list)
        self._level_sizes: list[int] = []
        self._inputs: list[Tensor] = []
        model = engine.model
        assert isinstance(model.levels, DraftLevels)
        assert isinstance(model.attention, NativeAttention)
        self._run = model.levels.run
        cell, path = model.cache.scratch_cell, model.forward_pass
        model.forwards = [GraphForward(self._kept, model.attention, cell, path, as_it_is)]

    def _kept(self, inputs: list[Tensor]) -> list[Tensor]:
        self._inputs = [*inputs]
        return self._run(inputs)

    def launch(self, jobs: Sequence[Job], max_line_tokens: int) -> Ticket:
        """See `StepRunner.launch`."""
        ticket = super().launch(jobs, max_line_tokens)
        self._level_sizes = [sum(number or 0 for number in ticket.output.num_rows)]
        return ticket

    def observe_levels(self, started: float, levels: Sequence[Level], num_sessions: int) -> None:
        """See `StepRunner.observe_levels`."""
        self._level_sizes += [level.num_nodes for level in levels]
        super().observe_levels(started, levels, num_sessions)

    def clear(self) -> None:
        """Forgets what was measured."""
        self._sizes.clear()
        self._seconds.clear()
        self._bare.clear()

    def commit(self, drafter: Drafter, arm: str, session: DraftStream, commitment: Commitment) -> None:
        """The drafter moves on."""
        started = time.thread_time()
        drafter.commit(session, commitment)
        self._seconds[arm] += time.thread_time() - started

    def step(self, drafter: Drafter, arm: str, num_levels_max: int) -> int:
        """A step or a run of the drafter. Returns how many levels it had, 0 if there was nothing to draft."""
        drafter.num_levels_max = num_levels_max
        self._level_sizes, self._inputs = [], []
        started = time.thread_time()
        drafter.step()
        seconds = time.thread_time() - started
        sizes = self._level_sizes
        self._sizes[arm] += sizes
        self._seconds[arm] += seconds if sizes else 0.0
        if self._inputs and sizes:  # the pass again: it writes the same to the same cells
            started = time.thread_time()
            self._run([*self._inputs])
            self._bare[sizes[0]].append(time.thread_time() - started)
        return len(sizes)

    def costs(self, arm: str) -> Costs:
        """Of the levels of that arm. A size that no step had counts as the next one that some had."""
        bare = {size: statistics.median(seconds) for size, seconds in self._bare.items()}
        sizes = self._sizes[arm]
        bare_seconds = sum(bare[min((each for each in bare if each >= size), default=max(bare))] for size in sizes)
        num_levels = len(sizes)
        return Costs(
            num_levels,
            statistics.fmean(sizes),
            1000.0 * bare_seconds / num_levels,
            1000.0 * self._seconds[arm] / num_levels,
        )


async def _draft(drafter: Drafter, meter: Meter, prompts: Sequence[list[int]], temperature: float) -> None:
    vocab_size = drafter.runner.engine.vocab_size
    sessions = [_opened(drafter, index, prompt, vocab_size, temperature) for index, prompt in enumerate(prompts)]
    readers = [asyncio.create_task(_read(session.outbox)) for session in sessions]
    while any(seated.is_prefilling for seated in drafter.admission.seated):
        drafter.step()
    for index in range(NUM_ROUNDS):
        arm, most = (STEPS, 1) if index % 2 else (RUNS, LEVELS_MAX)
        for session in sessions:
            commitment = _commitment(drafter.scheduler.sessions[session].state, is_miss=index % 4 > 1)
            meter.commit(drafter, arm, session, commitment)
        num_left = LEVELS_PER_ROUND
        while num_left > 0 and (num_levels := meter.step(drafter, arm, min(most, num_left))):
            num_left -= num_levels
        await asyncio.sleep(0)
    for session in sessions:
        session.outbox.end()
        drafter.close(session)
    await asyncio.gather(*readers)


async def _read(outbox: Outbox[DraftEvent]) -> None:
    while await outbox.take() is not None:
        pass


def _opened(drafter: Drafter, index: int, prompt: list[int], vocab_size: int, temperature: float) -> DraftStream:
    opening = DraftOpen(
        session_id=str(index),
        token_ids=prompt,
        num_prompt_tokens=len(prompt),
        sampling=SamplingParams(temperature=temperature, seed=index),
        max_run_ahead=RUN_AHEAD_MAX,
        tree_width=0,
        max_length=len(prompt) + (NUM_ROUNDS + 1) * COMMITTED_TOKENS + RUN_AHEAD_MAX,
        vocab_size=vocab_size,
    )
    session = DraftStream(opening, Outbox[DraftEvent]())
    drafter.open(session)
    return session


def _commitment(state: DraftSession, *, is_miss: bool) -> Commitment:
    token_ids: list[int] = []
    node = state.tree.root
    while node.children and len(token_ids) < COMMITTED_TOKENS - is_miss:
        node = max(node.children.values(), key=lambda child: child.path_log_prob)
        token_ids.append(node.token_id)
    if is_miss or not token_ids:
        token_ids.append(next(token_id for token_id in count() if token_id not in node.children))
    cutoff_ms = time.monotonic() * 1000.0 - REPORT_MS
    return Commitment(len(state.line), token_ids, is_miss, VERIFY_MS, PROBABILITY_MIN, cutoff_ms)


if __name__ == "__main__":
    typer.run(main)
