"""What a round costs the coordinator by gRPC and by HTTP: processor time of its process, streams of both in turn.

    python -m bench.micro.doors

Linux only. The bundled pair runs in processes of its own, and so does the client, whose time does not count.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer
import uvloop
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.compare.measuring import order
from bench.processor_time import used_ns
from bench.prompts import load_prompts, tokenizer
from bench.rivals.modes import OPEN_GATE, Mode
from bench.stack.models import Models
from bench.stack.preparing import prepared
from bench.stack.services import HOST, Setup, free_port, running
from outrider.cli.board import Board
from outrider.client import GenerationClient, Tokens

_MODE: Final = Mode(name="outrider", about="everything on", coordinator=(OPEN_GATE,))
_NUM_WARM_UPS: Final = 2
"""Prompts before the first that counts."""
_SPECULATE: Final = {"speculation": True, "target alone": False}
_GRPC, _HTTP, _REPORTS = DOORS = ("gRPC", "HTTP", "HTTP, reports of rounds")

Ask = Callable[[Sequence[int], int, bool], Awaitable[int]]
"""Streams an answer to a prompt, of so many tokens, speculating or not. Returns its number of rounds."""
Found = Mapping[tuple[str, str], list[float]]
"""Microseconds of the coordinator for each round, by door and whether there is speculation, in the order of prompts."""


def main(
    num_prompts: Annotated[int, typer.Option(help="Prompts that count.")] = 12,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What a round costs the coordinator by either door."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(_measured(num_prompts, max_tokens))
    rows = [_row(found, door, how) for how, door in product(_SPECULATE, DOORS)]
    if as_json:
        print(json.dumps({"max_tokens": max_tokens, "rows": rows, "machine": machine.facts()}))
        return
    table = Table(*rows[0], title=f"processor time of the coordinator, one stream, {num_prompts} prompts: medians")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.0f}" for value in row.values()))
    Console().print(table)


async def _measured(num_prompts: int, max_tokens: int) -> Found:
    models = prepared(Models(compile="off"), Console(stderr=True))
    prompts = load_prompts(None, num_prompts + _NUM_WARM_UPS, tokenizer(Path(models.target)))
    found: dict[tuple[str, str], list[float]] = {each: [] for each in product(DOORS, _SPECULATE)}
    http = f"{HOST}:{free_port()}"
    with Board(Console(stderr=True), show_logs=False).watching() as board:
        async with (
            running([_MODE], models, board, Setup(coordinator_flags=(f"--http={http}",))) as stack,
            httpx.AsyncClient(base_url=f"http://{http}", timeout=None) as client,
        ):
            process = next(iter(stack.coordinators.values())).process_id
            ask: Mapping[str, Ask] = {
                _GRPC: partial(_by_grpc, stack.client(_MODE)),
                _HTTP: partial(_by_http, client, False),
                _REPORTS: partial(_by_http, client, True),
            }
            board.settle()
            for index, prompt in enumerate(prompts):
                for how, speculate in _SPECULATE.items():
                    for door in order(list(DOORS), index):
                        before = used_ns(process)
                        num_rounds = await ask[door](prompt, max_tokens, speculate)
                        used = used_ns(process) - before
                        if index >= _NUM_WARM_UPS:
                            found[door, how].append(used / num_rounds / 1000.0)
    return found


async def _by_grpc(client: GenerationClient, prompt: Sequence[int], max_tokens: int, speculate: bool) -> int:
    events = client.generate(prompt, max_tokens=max_tokens, ignore_eos=True, speculate=speculate)
    return sum([isinstance(event, Tokens) async for event in events])


async def _by_http(
    client: httpx.AsyncClient, reports: bool, prompt: Sequence[int], max_tokens: int, speculate: bool
) -> int:
    body: dict[str, Any] = {
        "prompt": [*prompt],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
        "speculation": {"enabled": speculate, "report_rounds": reports},
    }
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        return sum(['"token_ids":[' in line async for line in answer.aiter_lines() if '"choices":[{' in line])


def _row(found: Found, door: str, how: str) -> dict[str, str | float]:
    ours, grpc = found[door, how], found[_GRPC, how]
    return {
        "": how,
        "door": door,
        "us per round": statistics.median(ours),
        "more than gRPC": statistics.median(each - other for each, other in zip(ours, grpc, strict=True)),
    }


if __name__ == "__main__":
    typer.run(main)
