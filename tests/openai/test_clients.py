"""Other people's clients, each a process that tells what it was answered. `make test-clients` installs them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from outrider.core.protocol.sampling import SamplingParams
from outrider.telemetry import names
from outrider.telemetry.setup import set_up
from tests.e2e.answers import ask
from tests.e2e.stack import coordinator
from tests.openai.conftest import Served, http_at
from tests.openai.dictated import ANSWER

pytestmark = pytest.mark.asyncio(loop_scope="package")

INSTALLED = Path(__file__).parents[2] / "build" / "clients"
SCRIPTS = Path(__file__).parent / "clients"

NODE = shutil.which("node") or "node"
PYTHON = str(INSTALLED / "bin" / "python")
CLIENTS = {
    "by_node.cjs": (NODE, INSTALLED / "node_modules" / "openai"),
    "by_langchain.py": (PYTHON, INSTALLED / "bin" / "python"),
    "by_litellm.py": (PYTHON, INSTALLED / "bin" / "python"),
}
"""Each script's interpreter, and what is there once its client is installed."""

MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
RENDERED = "[system] Be short.\n[user] Hi\n[assistant]"
PROMPT = "def main("
SEED, NUM_TOKENS = 5, 12


def tool(name: str, **properties: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


ASKED = {
    "messages": MESSAGES,
    "question": [{"role": "user", "content": "What is 1 + 2?"}],
    "tools": [tool("add", a="integer", b="integer"), tool("weather", city="string")],
    "prompt": PROMPT,
    "seed": SEED,
    "num_tokens": NUM_TOKENS,
}


@asynccontextmanager
async def running(script: str, *urls: str) -> AsyncIterator[dict[str, Any]]:
    """What a client tells. It lives until the block ends, with a stream that it has left."""
    interpreter, installed = CLIENTS[script]
    if not installed.exists() or not shutil.which(interpreter):
        pytest.skip(f"{script} needs its client and `{Path(interpreter).name}`; `make test-clients` installs clients")
    process = await asyncio.create_subprocess_exec(
        *(interpreter, str(SCRIPTS / script), *urls, json.dumps(ASKED)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # LiteLLM would fetch a table of prices when it is imported.
        env={"PATH": os.environ["PATH"], "NODE_PATH": str(installed.parent), "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    )
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        assert line, f"{script} has failed, and says why on stderr"
        yield json.loads(line)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("script", CLIENTS)
async def test_a_client_gets_what_grpc_gives(served: Served, dictated: str, script: str) -> None:
    exporter = InMemorySpanExporter()
    telemetry = set_up("test", environ={}, span_exporter=exporter)
    sampling = SamplingParams(temperature=1.0, seed=SEED)
    async with (
        coordinator(served.verify.address, served.draft.address, telemetry=telemetry) as stack,
        http_at(stack) as url,
        running(script, url, dictated) as told,
    ):
        while (await stack.client.server_info()).num_running:
            pass
        chat = await ask(stack.client, RENDERED, sampling=sampling, max_tokens=NUM_TOKENS, add_special_tokens=False)
        completion = await ask(stack.client, PROMPT, sampling=sampling, max_tokens=NUM_TOKENS)
    calls = [["add", {"a": 1, "b": 2}], ["weather", {"city": "Zürich 🙂"}]]
    assert len(set(told.pop("call_ids"))) == len(calls)
    assert told == {
        "whole": chat.text,
        "streamed": chat.text,
        "num_tokens": NUM_TOKENS,
        "completion": completion.text,
        "whole_calls": calls,
        "calls": calls,
        "finish_reasons": ["tool_calls", "tool_calls"],
        "answer": "".join(ANSWER),
        "errors": [["NotFoundError", 404], ["BadRequestError", 400]],
    }
    errors = [(span.attributes or {}).get(names.ERROR_TYPE) for span in exporter.get_finished_spans()]
    assert errors.count("CancelledError") == 1  # the stream that the client left did not run to its end
