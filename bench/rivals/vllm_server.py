"""vLLM's own OpenAI server as a process, alone, with a draft model of its own, or with Outrider's draft pool."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

START_SECONDS = 900.0
"""Longest that a server may take to answer: loading vLLM takes minutes on a busy machine of two cores."""

ANSWER_SECONDS = 600.0
"""Longest that an answer may take."""

_ASK_SECONDS = 3.0
"""Pause between two questions whether a server that starts answers."""

_COUNTER = re.compile(
    r"^vllm:(spec_decode_\w+_total|generation_tokens_total|prefix_cache_hits_total|iteration_tokens_total_count)"
    r"\{(.*)\} (\S+)$"
)
_POSITION = re.compile(r'position="(\d+)"')

LIMITS = ("--max-model-len=1024", "--max-num-seqs=16", "--max-num-batched-tokens=2048")
"""As much as the bundled pair and sixteen requests need."""

_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


class VllmDiedError(Exception):
    """A server ended, or did not answer."""


class VllmServer:
    """One server. While it is paused its workers, which spin when they have nothing to do, take no time."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.log = log
        self._process = process
        self._port = port

    def wait_until_ready(self) -> None:
        """Returns when it answers. Raises VllmDiedError."""
        wait = threading.Event()
        for _ in range(round(START_SECONDS / _ASK_SECONDS)):
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError, http.client.HTTPException):
                urllib.request.urlopen(self._url("/health"), timeout=_ASK_SECONDS)
                return
            wait.wait(_ASK_SECONDS)
        raise VllmDiedError(f"vLLM does not answer; see {self.log}")

    def complete(self, prompt: str | Sequence[int], max_tokens: int, **options: Any) -> str:
        """The text that it continues `prompt` with, greedily and beyond any end of text."""
        body = {"model": "target", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        request = urllib.request.Request(
            self._url("/v1/completions"),
            json.dumps(body | options).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return json.load(answer)["choices"][0]["text"]

    def counts(self) -> Mapping[str, float]:
        """vLLM's own counters of tokens and drafts so far; those by position have it behind their name."""
        found: dict[str, float] = {}
        with urllib.request.urlopen(self._url("/metrics"), timeout=ANSWER_SECONDS) as answer:
            for line in answer.read().decode().splitlines():
                if (match := _COUNTER.match(line)) is not None:
                    position = _POSITION.search(match[2])
                    name = match[1].removesuffix("_total") + (f"_{position[1]}" if position else "")
                    found[name] = float(match[3])
        return found

    def pause(self) -> None:
        """Stops all of its processes until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets them go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends all of its processes."""
        self._signal(signal.SIGCONT)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30.0)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._port}{path}"


@contextlib.contextmanager
def vllm_server(
    python: Path, target: Path, log: Path, speculation: Mapping[str, object] | None = None, **variables: str
) -> Iterator[VllmServer]:
    """Starts vLLM by the interpreter `python`; does not wait until it is ready. Its output goes to `log`.

    `speculation` is its `--speculative-config`, and `variables` are added to its environment.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(str(python), "-m", "vllm.entrypoints.openai.api_server", f"--model={target}", "--served-model-name=target"),
        *("--host=127.0.0.1", f"--port={port}", "--dtype=float32", "--enforce-eager", *LIMITS),
        *([f"--speculative-config={json.dumps(dict(speculation))}"] if speculation is not None else []),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            env=_ENVIRONMENT | os.environ | variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = VllmServer(process, port, log)
    try:
        yield server
    finally:
        server.stop()


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
