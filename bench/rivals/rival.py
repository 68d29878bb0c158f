"""One way of another system to produce the target's text: how its server is started, and what it is asked."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.rivals.modes import Mode
from outrider.core.protocol.errors import OutriderError

CONTEXT_SPARE = 64
"""Tokens of context beyond prompt and answer: near its end a server may draft less."""

_TOLD = ("GOMP_", "OMP_WAIT_POLICY", "VLLM_CPU_")
"""Beginnings of names of variables that decide how a server shares the cores."""


class NoRivalError(OutriderError):
    """Another system was asked for that is not there, or that cannot be prepared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A server to be, of which the benchmark asks completions as any client of OpenAI's interface would."""

    mode: Mode
    command: Sequence[str]
    """All but host and port."""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """Variables that it finds unless this process has them already."""
    model: str
    """What it calls its model."""
    question: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """More fields of each request."""


def rival_mode(name: str, about: str, version: str, flags: Sequence[str], family: str = "") -> Mode:
    """The mode of a rival. `flags` are those that a reader shall know of; so are the variables that reach it."""
    variables = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(_TOLD)]
    shown = " ".join([*variables, *flags])
    return Mode(name=name, about=about, family=family, external=True, version=f"{version}: {shown}")


def output_of(command: Sequence[str], advice: str) -> str:
    """What `command` prints. Raises NoRivalError, whose last words are the `advice`, if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise NoRivalError(f"{command[0]}: {error.strerror}; {advice}") from error
    said = f"{done.stdout}{done.stderr}".strip()
    if done.returncode:
        raise NoRivalError(f"{' '.join(command[:2])} failed; {advice}\n{said[-2000:]}")
    return said
