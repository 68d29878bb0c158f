"""What a round costs a service: processor time of its process, by number of sessions, beside another checkout.

    python -m bench.micro.rounds --sessions 1,16 --other ../before
    python -m bench.micro.rounds --service verify --other ../before

Linux only. Of the coordinator, workers without a model (`played_workers.py`) and the clients are processes of their
own. Of the verify service, which has the real target, this process plays the coordinator (`verify_rounds.py`), without
guesses and with them. Checkouts take turns.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from enum import Enum
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.micro import verify_rounds
from bench.micro.bursts import in_turn
from bench.micro.verify_rounds import VerifyCost
from bench.processor_time import used_by_main_thread_ns, used_ns
from bench.prompts import load_prompts, tokenizer
from bench.rivals.modes import OPEN_GATE
from bench.stack.checkout import HERE, Checkout, checkout_at
from bench.stack.services import HOST, free_port
from outrider.cli.child import Child, Observer
from outrider.client import NO_RETRY, GenerationClient, SamplingParams, Tokens

_PLAYED: Final = Path(__file__).with_name("played_workers.py")
_WITH_DRAFTS: Final = "with drafts"
_TARGET: Final = HERE.root / "models" / "target"
"""Of which a coordinator's workers use the tokenizer alone."""


class Service(Enum):
    """Whose rounds are measured."""

    COORDINATOR = "coordinator"
    VERIFY = "verify"


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


async def _coordinators(
    checkouts: Mapping[str, Checkout], counts: Sequence[int], num_bursts: int, num_tokens: int
) -> list[dict[str, str | float]]:
    prompts = load_prompts(None, max(counts), tokenizer(_TARGET))
    async with AsyncExitStack() as leaving:
        stacks = {name: await leaving.enter_async_context(_running(checkout)) for name, checkout in checkouts.items()}
        arms = {
            (count, name): partial(stacks[name].burst, prompts[:count], num_tokens // count)
            for count, name in product(counts, checkouts)
        }
        found = await in_turn(arms, num_bursts)
    return [_coordinator_row(found, count, name) for count, name in found]


def _coordinator_row(found: Mapping[tuple[int, str], list[Cost]], count: int, name: str) -> dict[str, str | float]:
    """The least of the bursts, of coordinator and workers apart: what else the machine does can only add to them."""
    cost = _least(found[count, name])
    row: dict[str, str | float] = {
        "checkout": name,
        "sessions": count,
        "event loop": round(cost.main),
        "other threads": round(cost.others),
        "workers": round(cost.workers),
    }
    if (count, "other") in found:
        other = _least(found[count, "other"])
        row["coordinator / other"] = round(cost.coordinator / other.coordinator, 3)
        row["workers / other"] = round(cost.workers / other.workers, 3)
    return row


def _least(costs: Sequence[Cost]) -> Cost:
    coordinator = min(costs, key=lambda cost: cost.coordinator)
    return coordinator._replace(workers=min(cost.workers for cost in costs))


async def _verifiers(
    checkouts: Mapping[str, Checkout], counts: Sequence[int], num_bursts: int, num_tokens: int
) -> list[dict[str, str | float]]:
    prompts = load_prompts(None, max(counts), tokenizer(_TARGET))
    cores = os.sched_getaffinity(0)
    async with AsyncExitStack() as leaving:
        stacks = {
            name: await leaving.enter_async_context(verify_rounds.running(checkout, _TARGET, min(cores)))
            for name, checkout in checkouts.items()
        }
        os.sched_setaffinity(0, {max(cores)})
        arms = {
            (count, drafts, name): partial(
                stacks[name].burst, prompts[:count], num_tokens // count, drafts=drafts == _WITH_DRAFTS
            )
            for count, drafts, name in product(counts, ("alone", _WITH_DRAFTS), checkouts)
        }
        found = await in_turn(arms, num_bursts)
    return [_verifier_row(found, *key) for key in found]


def _verifier_row(
    found: Mapping[tuple[int, str, str], list[VerifyCost]], count: int, drafts: str, name: str
) -> dict[str, str | float]:
    """The least of the bursts, too."""
    cost = min(found[count, drafts, name], key=lambda each: each.process)
    row: dict[str, str | float] = {
        "checkout": name,
        "sessions": count,
        "": drafts,
        "tokens": round(cost.num_tokens, 2),
        "device thread": round(cost.device),
        "event loop": round(cost.main),
        "other threads": round(cost.others),
        "switches": round(cost.switches, 1),
    }
    if (count, drafts, "other") in found:
        other = min(each.process for each in found[count, drafts, "other"])
        row["process / other"] = round(cost.process / other, 3)
    return row


def main(
    service: Annotated[Service, typer.Option(help="Whose rounds.")] = Service.COORDINATOR,
    sessions: Annotated[str, typer.Option(help="How many sessions run at a time; several numbers by commas.")] = "1,16",
    other: Annotated[Path | None, typer.Option(help="Another checkout, measured by turns.")] = None,
    num_bursts: Annotated[int, typer.Option(help="Bursts of each kind that count.")] = 15,
    num_tokens: Annotated[int, typer.Option(help="Tokens of a burst, all sessions together.")] = 1024,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What a round costs a service."""
    checkouts = {"this": HERE} | ({} if other is None else {"other": checkout_at(other, Path(sys.executable))})
    counts = [int(count) for count in sessions.split(",")]
    measure = _coordinators if service is Service.COORDINATOR else _verifiers
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rows = runner.run(measure(checkouts, counts, num_bursts, num_tokens))
    if as_json:
        print(json.dumps({"num_tokens": num_tokens, "rows": rows, "machine": machine.facts()}))
        return
    table = Table(*rows[0], title=f"{service.value}: processor time of a round, us: the least of the bursts")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
