"""Where the time of a drafter's step goes, by its number of sessions: the real drafter, on one thread.

`python -m bench.micro.draft_steps` prints a table. No services run, so nothing else wants the core.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Sequence
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
from bench.stack.measured_runner import MeasuredRunner
from bench.stack.step_log import StepLog
from draft_service.drafter import Drafter, DraftStream
from draft_service.drafts import DraftEvent
from outrider.core.draft.session import DraftSession
from outrider.core.protocol.messages import Commitment, DraftOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import Node
from outrider.core.protocol.validation import RUN_AHEAD_MAX
from outrider.engine.engine import Engine
from outrider.engine.load.folder import tokenizer_file
from outrider.engine.sample.allowed import Allowed
from outrider.engine.sample.sampler import Row
from outrider.worker.outbox import Outbox

NUM_ROUNDS = 24
"""Commits that each session gets."""

STEPS_PER_ROUND = 8
"""Draft steps between two commits of a session: about as many as fit beside a step of the wide target."""

COMMITTED_TOKENS = 3
"""Tokens of each commit, the draft's likeliest, as many as a round of the wide target commits."""

VERIFY_MS = 20.0
PROBABILITY_MIN = 0.05
"""What commits tell of the target."""


def main(
    draft: Annotated[Path, typer.Option(help="Folder of the draft model.")] = Path("models/draft"),
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    sessions: Annotated[str, typer.Option(help="Numbers of sessions.")] = "1,4,8,16",
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.8,
) -> None:
    """Measures steps of a drafter whose sessions all have something to draft."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    numbers = [int(number) for number in sessions.split(",")]
    engine = load_engine(draft, dtype, compiled=True, max_sessions=max(numbers))
    tokenizer = Tokenizer.from_file(str(tokenizer_file(draft)))
    title = f"{draft.name}, {dtype}, temperature {temperature:g}: median ms per draft step"
    table = new_table(title, "nodes expanded", "forward pass", "choice of tokens", "all else")
    runner = MeasuredRunner(engine, is_target=False)
    drafter = Drafter(engine, runner=lambda _: runner)
    with torch.inference_mode():
        for num_sessions in numbers:
            prompts = load_prompts(None, num_sessions, tokenizer)
            found = asyncio.run(_measured(drafter, runner.log, engine, prompts, temperature))
            name = f"{num_sessions} sessions" if num_sessions > 1 else "1 session"
            table.add_row(name, f"{found.num_nodes:.1f}", *(f"{each:.3f}" for each in found[1:]))
    Console().print(table)


class StepParts(NamedTuple):
    """A mean and medians over steps."""

    num_nodes: float
    """Expanded."""
    forward_ms: float
    choice_ms: float
    """Of the guesses below each node, from its logits."""
    rest_ms: float


async def _measured(
    drafter: Drafter, log: StepLog, engine: Engine, prompts: list[list[int]], temperature: float
) -> StepParts:
    choices: list[float] = []
    propose = drafter.runner.sampler.propose

    def timed(
        logits: Tensor, rows: Sequence[Row], width: int, allowed: Allowed | None = None
    ) -> tuple[list[list[int]], list[list[float]]]:
        started = time.perf_counter()
        proposals = propose(logits, rows, width, allowed)
        choices.append((time.perf_counter() - started) * 1000.0)
        return proposals

    drafter.runner.sampler.propose = timed
    sessions = [_opened(drafter, index, prompt, engine.vocab_size, temperature) for index, prompt in enumerate(prompts)]
    readers = [asyncio.create_task(_read(session.outbox)) for session in sessions]
    while any(seated.is_prefilling for seated in drafter.admission.seated):
        drafter.step()
    log.take()
    choices.clear()
    for _ in range(NUM_ROUNDS):
        for session in sessions:
            drafter.commit(session, _commitment(drafter.scheduler.sessions[session].state))
            for _ in range(STEPS_PER_ROUND // len(sessions) or 1):
                drafter.step()
            await asyncio.sleep(0)
    found = log.take()
    drafter.runner.sampler.propose = propose
    for session in sessions:
        session.outbox.end()
        drafter.close(session)
    await asyncio.gather(*readers)
    forward = [(ended - started) / 1e6 for started, ended in found["passes"]]
    steps = [(ended - started) / 1e6 for started, ended in found["steps"]]
    rest = [step - sum(parts) for step, *parts in zip(steps, forward, choices, strict=True)]
    num_nodes = statistics.fmean(size.num_rows for size in found["sizes"])
    return StepParts(num_nodes, *map(statistics.median, (forward, choices, rest)))


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


def _commitment(state: DraftSession) -> Commitment:
    token_ids: list[int] = []
    node: Node | None = state.tree.root
    while node is not None and node.children and len(token_ids) < COMMITTED_TOKENS:
        node = max(node.children.values(), key=lambda child: child.path_log_prob)
        token_ids.append(node.token_id)
    return Commitment(len(state.line), token_ids or [0], False, VERIFY_MS, PROBABILITY_MIN)


if __name__ == "__main__":
    typer.run(main)
