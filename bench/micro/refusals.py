"""How soon the HTTP interface refuses the worst that it can be sent, and what others notice of it meanwhile.

    python -m bench.micro.refusals

The bundled pair runs in processes of its own, its target with a chat template that does what a hostile one would. Each
case must be answered with a 4xx in OpenAI's shape within SECONDS_MAX; while it is, `/healthz` is asked again and again.
The exit status is 1 if a case is not, or if an answer to a good request is another one afterwards.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import httpx
import typer
import uvloop
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.processor_time import used_by_family_ns
from bench.rivals.modes import Mode
from bench.stack.models import Models
from bench.stack.preparing import prepared
from bench.stack.services import HOST, Setup, free_port, running
from outrider.cli.board import Board

SECONDS_MAX: Final = 1.0
_PROBE_SECONDS: Final = 0.01
"""Pause between two questions whether the process lives."""
_MODE: Final = Mode(name="outrider", about="everything on")

_TEMPLATE: Final = """{#- <tool_call> -#}
{%- macro endless(number) %}{{ endless(number + 1) }}{% endmacro -%}
{%- if messages[0].content == "loops" -%}
{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}
{%- elif messages[0].content == "fills memory" -%}{{ ("a" * 99999) * 99999 }}
{%- elif messages[0].content == "recurses" -%}{{ endless(0) }}
{%- elif messages[0].content == "escapes" -%}{{ messages.__class__.__mro__[1].__subclasses__() }}
{%- elif messages[0].content == "raises" -%}{{ raise_exception("no") }}
{%- endif -%}
{%- for message in messages %}{{ message.content }}{% endfor -%}
"""
"""What the first message says, this template does."""

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"


class Case(NamedTuple):
    """Something that must be refused."""

    path: str
    content: bytes
    headers: Mapping[str, str] = {}


def _completion(**fields: Any) -> Case:
    return Case(COMPLETIONS, json.dumps({"prompt": "a", "max_tokens": 4, **fields}).encode())


def _chat(content: str = "a", **fields: Any) -> Case:
    messages = [{"role": "user", "content": content}]
    return Case(CHAT, json.dumps({"messages": messages, "max_tokens": 4, **fields}).encode())


def _schema(schema: Any) -> Case:
    return _completion(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})


def _nested(depth: int, inner: Any, key: str = "items") -> Any:
    found = inner
    for _ in range(depth):
        found = {"type": "array", key: found} if key == "items" else {key: [found]}
    return found


def _tool(name: str, parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters or {"type": "object"}}}


_WIDE: Final = {
    "type": "object",
    "properties": {f"p{n}": {"enum": [f"v{n}-{m}" for m in range(20)]} for n in range(400)},
}

CASES: Final[Mapping[str, Case]] = {
    "no JSON": Case(COMPLETIONS, b"{" * 1_000_000),
    "nested lists": Case(COMPLETIONS, b'{"prompt":"a","x":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"),
    "nested objects": Case(COMPLETIONS, b'{"a":' * 500_000 + b"1" + b"}" * 500_000),
    "nested messages": Case(CHAT, b'{"messages":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"),
    "a huge number": Case(COMPLETIONS, b'{"prompt":"a","seed":1' + b"0" * 3_000_000 + b"}"),
    "10 MB of prompt": _completion(prompt="a" * 10_000_000),
    "60 MB of prompt": _completion(prompt="a" * 60_000_000),
    "4 MB of prompt": _completion(prompt="word " * 800_000),
    "4 MB of one letter": _completion(prompt="a" * 4_000_000),
    "4 MB of emoji": Case(COMPLETIONS, json.dumps({"prompt": "🙂" * 1_000_000}, ensure_ascii=False).encode()),
    "a million token ids": _completion(prompt=[1] * 1_000_000),
    "prompts without end": _completion(prompt=["a"] * 500_000),
    "unknown fields without end": _completion(**{f"x{number}": number for number in range(200_000)}),
    "biases without end": _completion(logit_bias={str(number): 1 for number in range(200_000)}),
    "stop strings without end": _completion(stop=["a" * 200] * 15_000),
    "10 MB of chat": _chat("a" * 10_000_000),
    "messages without end": Case(CHAT, json.dumps({"messages": [{"role": "user", "content": "a"}] * 90_000}).encode()),
    "a picture": _chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
    "items without end": Case(RESPONSES, json.dumps({"input": [{"type": "reasoning"}] * 150_000}).encode()),
    "a template that loops": _chat("loops"),
    "a template that fills memory": _chat("fills memory"),
    "a template that recurses": _chat("recurses"),
    "a template that escapes": _chat("escapes"),
    "a template that raises": _chat("raises"),
    "a template of the client's": _chat(chat_template="{{ 1 }}"),
    "a schema that is none": _schema({"type": 3}),
    "a deep schema": _schema(_nested(90, {"not": {}})),
    "a wide schema": _schema({"anyOf": [_WIDE] * 2}),
    "a schema of choices": _schema(_nested(60, {"type": "string"}, "anyOf") | {"not": {}}),
    "a schema that refers to itself": _schema({"$ref": "#"}),
    "a schema elsewhere": _schema({"$ref": "http://127.0.0.1:1/x"}),
    "a pattern that explodes": _schema({"type": "string", "pattern": "^((a{1,200}){1,200}){1,200}$"}),
    "an expression that explodes": _completion(guided_regex="((((a{1,99}){1,99}){1,99}){1,99}){1,99}"),
    "an expression that is none": _completion(guided_regex="(" * 100_000),
    "choices without end": _completion(guided_choice=[f"choice {number}" for number in range(50_000)]),
    "a grammar that is none": _completion(guided_grammar="start: " + "(" * 60_000),
    "a grammar that explodes": _completion(
        guided_grammar="start: /a{1,30000}b{1,30000}c{1,30000}/ & /(a|b|c){1,60000}/"
    ),
    "a grammar too long": _completion(guided_grammar="start: " + '"a" ' * 100_000),
    "tools without end": _chat(tools=[_tool(f"f{number}") for number in range(20_000)]),
    "a tool that is none": _chat(tools=[{"type": "function"}] * 128),
    "tools of the same name": _chat(tools=[_tool("f")] * 128, tool_choice="required"),
    "a deep tool": _chat(tools=[_tool("f", _nested(80, {"type": "string"}))], tool_choice="required"),
    "a tool's name without end": _chat(tools=[_tool("f" * 1_000_000)], tool_choice="required"),
    "another type": Case(COMPLETIONS, b"{}", {"content-type": "text/plain"}),
    "an event id of nothing": Case(COMPLETIONS, b'{"prompt":"a","stream":true}', {"last-event-id": "x" * 50_000}),
    "a header without end": Case(COMPLETIONS, b"{}", {"x-long": "a" * 1_000_000}),
    "headers without end": Case(COMPLETIONS, b"{}", {f"x-{number}": "a" * 100 for number in range(1_000)}),
    "a path without end": Case("/v1/" + "a" * 60_000, b"{}"),
}


class Outcome(NamedTuple):
    """How a case was answered."""

    status: int
    """0 if no answer came."""
    is_shaped: bool
    """Whether the body is that of an error of OpenAI's."""
    seconds: float
    processor_seconds: float
    """Processor time of all services: what the answer takes where nobody else wants the processors."""
    longest_probe_seconds: float
    """The longest time that `/healthz` took meanwhile."""


def main(
    num_repeats: Annotated[int, typer.Option(help="Times that each case is sent; the median counts.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """How soon the worst is refused."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcomes, is_unharmed = runner.run(_measured(num_repeats))
    rows = {name: _median(each) for name, each in outcomes.items()}
    bad = [name for name, row in rows.items() if not _is_refused(row)]
    if as_json:
        told = {name: row._asdict() for name, row in rows.items()}
        print(json.dumps({"cases": told, "unharmed": is_unharmed, "machine": machine.facts()}))
    else:
        table = Table("case", "status", "ms", "processor, ms", "/healthz, ms", title=_title(num_repeats))
        for name, row in sorted(rows.items(), key=lambda each: -each[1].seconds):
            figures = (f"{1000 * seconds:.0f}" for seconds in row[2:])
            table.add_row(name, f"{row.status}{'' if row.is_shaped else ' in another shape'}", *figures)
        Console().print(table)
        Console().print(f"not refused as they should be: {', '.join(bad) or 'none'}")
        Console().print(f"a good request is answered as before: {'yes' if is_unharmed else 'no'}")
    if bad or not is_unharmed:
        raise typer.Exit(1)


def _title(num_repeats: int) -> str:
    crowd = f"{os.getloadavg()[0]:.0f} processes on {len(os.sched_getaffinity(0))} cores"
    return f"medians of {num_repeats}, worst first; {crowd}"


def _is_refused(row: Outcome) -> bool:
    return 400 <= row.status < 500 and row.is_shaped and row.seconds < SECONDS_MAX


def _median(outcomes: list[Outcome]) -> Outcome:
    last = outcomes[-1]
    medians = (statistics.median(each) for each in zip(*(outcome[2:] for outcome in outcomes), strict=True))
    is_shaped = all(outcome.is_shaped and outcome.status == last.status for outcome in outcomes)
    return Outcome(last.status, is_shaped, *medians)


async def _measured(num_repeats: int) -> tuple[Mapping[str, list[Outcome]], bool]:
    """Outcomes by case, and whether a good request is answered as before."""
    models = prepared(Models(compile="off"), Console(stderr=True))
    http = f"{HOST}:{free_port()}"
    with tempfile.TemporaryDirectory() as folder, Board(Console(stderr=True), show_logs=False).watching() as board:
        target = Path(folder) / "target"
        shutil.copytree(models.target, target)
        (target / "chat_template.jinja").write_text(_TEMPLATE)
        setup = Setup(coordinator_flags=(f"--http={http}",))
        async with (
            running([_MODE], replace(models, target=str(target)), board, setup) as stack,
            httpx.AsyncClient(base_url=f"http://{http}", timeout=60.0) as client,
        ):
            board.settle()
            before = await _good(client)
            processes = [service.process_id for service in stack.services]
            outcomes = {
                name: [await _asked(client, case, processes) for _ in range(num_repeats)]
                for name, case in CASES.items()
            }
            return outcomes, before == await _good(client)


async def _good(client: httpx.AsyncClient) -> list[Any]:
    """What good requests are answered. They have each part started that a request may need."""
    seeded: dict[str, Any] = {"seed": 1, "max_tokens": 24}
    schema = {"type": "array", "items": {"type": "integer"}, "maxItems": 3}
    answers = [
        await client.post(COMPLETIONS, json={"prompt": "def f(", **seeded}),
        await client.post(COMPLETIONS, json={"prompt": "def f(", "guided_json": schema, **seeded}),
        await client.post(CHAT, json={"messages": [{"role": "user", "content": "Hi"}], **seeded}),
    ]
    return [answer.raise_for_status().json()["choices"] for answer in answers]


async def _asked(client: httpx.AsyncClient, case: Case, processes: Sequence[int]) -> Outcome:
    probing = asyncio.create_task(_probe(client))
    headers = {"content-type": "application/json", **case.headers}
    used, before = sum(map(used_by_family_ns, processes)), time.perf_counter()
    status, is_shaped = 0, False
    with suppress(httpx.TransportError, ValueError, KeyError, TypeError):
        answer = await client.post(case.path, content=case.content, headers=headers)
        status = answer.status_code
        is_shaped = answer.json()["error"].keys() == {"message", "type", "param", "code"}
    seconds = time.perf_counter() - before
    used = sum(map(used_by_family_ns, processes)) - used
    probing.cancel()
    return Outcome(status, is_shaped, seconds, used / 1e9, await probing)


async def _probe(client: httpx.AsyncClient) -> float:
    """The longest time that a question took, until it is cancelled."""
    longest = 0.0
    before = None
    with suppress(asyncio.CancelledError):
        while True:
            before = time.perf_counter()
            (await client.get("/healthz")).raise_for_status()
            longest, before = max(longest, time.perf_counter() - before), None
            await asyncio.sleep(_PROBE_SECONDS)
    return longest if before is None else max(longest, time.perf_counter() - before)


if __name__ == "__main__":
    typer.run(main)
