"""vLLM's own OpenAI server as a process, alone, with a draft model of its own, or with Outrider's draft pool."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.rivals.server import RivalServer, server_process

ANSWER_SECONDS = 600.0
"""Longest that an answer may take."""

_COUNTER = re.compile(
    r"^vllm:(spec_decode_\w+_total|generation_tokens_total|prefix_cache_hits_total|iteration_tokens_total_count)"
    r"\{(.*)\} (\S+)$"
)
_POSITION = re.compile(r'position="(\d+)"')

SERVED_NAME = "target"
"""What the server calls its model."""

EXACT = ("--dtype=float32", "--enforce-eager", "--max-model-len=1024", "--max-num-seqs=16")
"""Flags under which texts can be compared, with as much room as the bundled pair and sixteen requests need."""

ENVIRONMENT: Mapping[str, str] = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


class VllmServer(RivalServer):
    """One server, with its counters."""

    def complete(self, prompt: str | Sequence[int], max_tokens: int, **options: Any) -> str:
        """The text that it continues `prompt` with, greedily and beyond any end of text."""
        body = {"model": SERVED_NAME, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        request = urllib.request.Request(
            f"{self.address}/v1/completions",
            json.dumps(body | options).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return json.load(answer)["choices"][0]["text"]

    def counts(self) -> Mapping[str, float]:
        """vLLM's own counters of tokens and drafts so far; those by position have it behind their name."""
        found: dict[str, float] = {}
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=ANSWER_SECONDS) as answer:
            for line in answer.read().decode().splitlines():
                if (match := _COUNTER.match(line)) is not None:
                    position = _POSITION.search(match[2])
                    name = match[1].removesuffix("_total") + (f"_{position[1]}" if position else "")
                    found[name] = float(match[3])
        return found


def vllm_command(
    python: Path, target: Path, flags: Sequence[str], speculation: Mapping[str, object] | None
) -> list[str]:
    """What starts vLLM by the interpreter `python`; `speculation` is its `--speculative-config`."""
    return [
        *(str(python), "-m", "vllm.entrypoints.openai.api_server"),
        *(f"--model={target}", f"--served-model-name={SERVED_NAME}", "--max-num-batched-tokens=2048", *flags),
        *([f"--speculative-config={json.dumps(dict(speculation))}"] if speculation is not None else []),
    ]


@contextlib.contextmanager
def vllm_server(
    python: Path, target: Path, log: Path, speculation: Mapping[str, object] | None = None, **variables: str
) -> Iterator[VllmServer]:
    """Starts vLLM in float32; does not wait until it is ready. `variables` are added to its environment."""
    command = vllm_command(python, target, EXACT, speculation)
    with server_process(VllmServer, command, log, ENVIRONMENT | os.environ | variables) as server:
        yield server


@contextlib.contextmanager
def drafter_process(
    python: Path, model: Path | str, log: Path, *flags: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A draft service by the interpreter `python`, and its address. It may still be loading."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(python), "-m", "draft_service", f"--model={model}", f"--listen={address}", *flags],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process, address
    finally:
        process.kill()
        process.wait()
