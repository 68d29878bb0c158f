"""When an answer is soon enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from typer import Option


@dataclass(frozen=True, slots=True)
class Objective:
    """What an answer must keep to be good (a service-level objective)."""

    first_token_ms: Annotated[
        float,
        Option("--slo-first-token-ms", help="Longest time to the first token of an answer that is soon enough.", min=0),
    ] = 2000.0
    """What people wait for without giving up."""
    inter_token_ms: Annotated[
        float, Option("--slo-inter-token-ms", help="Longest mean time between its tokens.", min=0)
    ] = 100.0
    """Ten tokens a second, faster than people read."""


DEFAULT_OBJECTIVE = Objective()
