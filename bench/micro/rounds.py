"""What a round costs the coordinator: processor time of its process, by number of sessions, beside another checkout.

    python -m bench.micro.rounds --sessions 1,16 --other ../before

Linux only. Workers without a model (`played_workers.py`) and the clients are processes of their own; checkouts take
turns, each with its own workers.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.processor_time import used_by_main_thread_ns, used_ns
from bench.prompts import load_prompts, tokenizer
from bench.rivals.modes import OPEN_GATE
from bench.stack.checkout import HERE, Checkout, checkout_at
from bench.stack.services import HOST, free_port
from outrider.cli.child import Child, Observer
from outrider.client import NO_RETRY, GenerationClient, SamplingParams, Tokens

_PLAYED: Final = Path(__file__).with_name("played_workers.py")
_TARGET: Final = HERE.root / "models" / "target"
"""Its tokenizer alone is used."""
_NUM_WARM_UPS: Final = 1
"""Bursts of each kind before the first that counts."""


class Cost(NamedTuple):
    """What a round of one session costs, in microseconds of processor time."""

    main: float
    """The coordinator's event loop."""
    others: float
    """Its other threads, of which gRPC's poller is the busy one."""
    workers: float
    """Both workers, which share a process and have no model."""

    @property
    def coordinator(self) -> float:
        """All of it."""
        return self.main + self.others


class _Stack(NamedTuple):
    """One checkout's processes."""

    coordinator: int
    workers: int
    client: GenerationClient

    async def burst(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> Cost:
        """Answers of so many tokens to all prompts at once."""
        before = self._used()
        num_rounds = sum(await asyncio.gather(*(self._ask(prompt, num_tokens) for prompt in prompts)))
        used = [(now - then) / num_rounds / 1000.0 for then, now in zip(before, self._used(), strict=True)]
        return Cost(*used)

    def _used(self) -> tuple[int, int, int]:
        main, whole = used_by_main_thread_ns(self.coordinator), used_ns(self.coordinator)
        return main, whole - main, used_ns(self.workers)

    async def _ask(self, prompt: Sequence[int], num_tokens: int) -> int:
        sampling = SamplingParams(temperature=0.8)
        events = self.client.generate(prompt, max_tokens=num_tokens, ignore_eos=True, sampling=sampling)
        return sum([isinstance(event, Tokens) async for event in events])


@asynccontextmanager
async def _running(checkout: Checkout) -> AsyncIterator[_Stack]:
    verify, draft = (f"{HOST}:{free_port()}" for _ in range(2))
    async with AsyncExitStack() as leaving:
        workers = await asyncio.create_subprocess_exec(
            str(checkout.python),
            str(_PLAYED),
            str(_TARGET),
            verify,
            draft,
            stdin=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(checkout.root)},
        )
        leaving.callback(workers.kill)
        address = f"{HOST}:{free_port()}"
        flags = [f"--listen={address}", f"--http={HOST}:{free_port()}", f"--verify={verify}", f"--draft={draft}"]
        coordinator = Child(
            "coordinator",
            [*checkout.command("coordinator"), *flags, OPEN_GATE],
            address=address,
            health_service="outrider.v1.GenerationService",
            observer=Observer(),
        )
        leaving.push_async_callback(coordinator.kill)
        await coordinator.start()
        await coordinator.ready()
        client = await leaving.enter_async_context(GenerationClient(address, retry=NO_RETRY))
        yield _Stack(coordinator.process_id, workers.pid, client)


async def _measured(
    checkouts: Mapping[str, Checkout], counts: Sequence[int], num_bursts: int, num_tokens: int
) -> dict[tuple[str, int], list[Cost]]:
    prompts = load_prompts(None, max(counts), tokenizer(_TARGET))
    found: dict[tuple[str, int], list[Cost]] = {each: [] for each in product(checkouts, counts)}
    async with AsyncExitStack() as leaving:
        stacks = {name: await leaving.enter_async_context(_running(checkout)) for name, checkout in checkouts.items()}
        for index in range(_NUM_WARM_UPS + num_bursts):
            for count in counts:
                for name in list(stacks)[:: 1 if index % 2 else -1]:
                    cost = await stacks[name].burst(prompts[:count], num_tokens // count)
                    if index >= _NUM_WARM_UPS:
                        found[name, count].append(cost)
    return found


def main(
    sessions: Annotated[str, typer.Option(help="How many sessions run at a time; several numbers by commas.")] = "1,16",
    other: Annotated[Path | None, typer.Option(help="Another checkout, measured by turns.")] = None,
    num_bursts: Annotated[int, typer.Option(help="Bursts of each kind that count.")] = 15,
    num_tokens: Annotated[int, typer.Option(help="Tokens of a burst, all sessions together.")] = 1024,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What a round costs the coordinator."""
    checkouts = {"this": HERE} | ({} if other is None else {"other": checkout_at(other, Path(sys.executable))})
    counts = [int(count) for count in sessions.split(",")]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(_measured(checkouts, counts, num_bursts, num_tokens))
    rows = [_row(found, name, count) for count, name in product(counts, checkouts)]
    if as_json:
        print(json.dumps({"num_tokens": num_tokens, "rows": rows, "machine": machine.facts()}))
        return
    table = Table(*rows[0], title="processor time of a round, us: the least of the bursts")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


def _row(found: Mapping[tuple[str, int], list[Cost]], name: str, count: int) -> dict[str, str | float]:
    """The least of the bursts, of coordinator and workers apart: what else the machine does can only add to them."""
    cost = _least(found[name, count])
    row: dict[str, str | float] = {
        "checkout": name,
        "sessions": count,
        "event loop": round(cost.main),
        "other threads": round(cost.others),
        "workers": round(cost.workers),
    }
    if ("other", count) in found:
        other = _least(found["other", count])
        row["coordinator / other"] = round(cost.coordinator / other.coordinator, 3)
        row["workers / other"] = round(cost.workers / other.workers, 3)
    return row


def _least(costs: Sequence[Cost]) -> Cost:
    coordinator = min(costs, key=lambda cost: cost.coordinator)
    return coordinator._replace(workers=min(cost.workers for cost in costs))


if __name__ == "__main__":
    typer.run(main)
