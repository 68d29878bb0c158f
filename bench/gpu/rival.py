"""vLLM beside our steps: the same shape with random weights, in a process of the Python that has it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedConfig

from bench.gpu import vllm_steps
from bench.gpu.result import Measured
from bench.gpu.vllm_steps import ANSWER, Job
from bench.rivals.rival import NoRivalError, output_of

DRAFTED_SHARE_MIN = 0.9
"""Of the drafts that were asked for. Where n-grams find fewer, steps are over fewer tokens than the row says."""

_FIND = "import importlib.metadata as m; print(m.version(m.packages_distributions()['vllm'][0]))"

_TAIL_LINES = 60
"""How many last lines are told of a process that failed: the traceback of vLLM's engine, and then that of its owner."""


class Vllm(NamedTuple):
    """A Python that has vLLM."""

    python: Path
    version: str


def found_at(python: Path) -> Vllm:
    """Asks `python`. Raises NoRivalError."""
    said = output_of([str(python), "-c", _FIND], f"{python} has no vLLM: name one that has with --rival-python FILE")
    return Vllm(python, said.splitlines()[-1])


def beside(vllm: Vllm, config: PreTrainedConfig, dtype: str, rows: Sequence[Measured]) -> list[Measured]:
    """`rows`, those of the target with the time of vLLM's step beside ours, if it drafted as much. Raises
    NoRivalError."""
    found: dict[int, float | None] = {}
    with tempfile.TemporaryDirectory(prefix="outrider-vllm-") as folder:
        config.save_pretrained(folder)
        targets = {index: row for index, row in enumerate(rows) if row.role == "target"}
        for num_tokens in dict.fromkeys(row.num_tokens for row in targets.values()):
            some = {index: row for index, row in targets.items() if row.num_tokens == num_tokens}
            shapes = [(row.num_sessions, row.num_context_tokens) for row in some.values()]
            job = Job(folder=folder, dtype=dtype, num_tokens=num_tokens, rows=shapes)
            found.update(zip(some, _steps_ms(vllm, job), strict=True))
    return [replace(row, rival_ms=found.get(index)) for index, row in enumerate(rows)]


def _steps_ms(vllm: Vllm, job: Job) -> list[float | None]:
    """Of each row."""
    command = [str(vllm.python), "-P", vllm_steps.__file__, json.dumps(job)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    lines = done.stdout.splitlines()
    if done.returncode:
        tail = "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:])
        raise NoRivalError(f"vLLM {vllm.version} does not run its steps; measure without --rival-python\n{tail}")
    [answer] = [line.removeprefix(ANSWER) for line in lines if line.startswith(ANSWER)]
    said = json.loads(answer)
    if said["num_drafted"] < DRAFTED_SHARE_MIN * (job["num_tokens"] - 1):
        return [None] * len(job["rows"])
    return said["steps_ms"]
