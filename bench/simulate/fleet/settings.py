"""What a fleet is made of, what its clients ask, and how long everything takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from typer import Option

from outrider.core.protocol.validation import SESSIONS_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How many there are of everything."""

    num_verifiers: Annotated[int, Option("--verifiers", min=1)] = 1
    num_drafters: Annotated[int, Option("--drafters", help="0: the targets decode alone.", min=0)] = 1
    num_coordinators: Annotated[int, Option("--coordinators", min=1)] = 1
    num_clients: Annotated[int, Option("--clients", help="Each asks for an answer after the other.", min=1)] = 16
    max_sessions: Annotated[int, Option(help="Of each worker.", min=1, max=SESSIONS_MAX)] = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """Milliseconds. The defaults are what a target of some 70 billion parameters and a draft of one billion may take; a
    message's is measured (`python -m bench.micro.rounds`: 0.45 ms of a verdict and two windows), a report's assumed."""

    verify_ms: Annotated[float, Option(help="A verify step of one token.", min=0.001)] = 40.0
    verify_token_ms: Annotated[float, Option(help="What each further token adds to it.", min=0.0)] = 0.03
    draft_ms: Annotated[float, Option(help="A draft step of one node.", min=0.001)] = 2.0
    draft_node_ms: Annotated[float, Option(help="What each further node adds to it.", min=0.0)] = 0.01
    delay_ms: Annotated[float, Option(help="From a coordinator to a worker, or back.", min=0.0)] = 0.5
    event_ms: Annotated[float, Option(help="What a coordinator takes for each message of a session.", min=0.0)] = 0.15
    report_ms: Annotated[float, Option(help="The same of a worker's report of its load.", min=0.0)] = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The clients' requests. Lengths are exponentially distributed."""

    acceptance: Annotated[float, Option(help="Chance that a draft token is the target's.", min=0.0, max=1.0)] = 0.7
    mean_prompt_tokens: Annotated[int, Option("--prompt-tokens", help="In the mean.", min=1)] = 256
    mean_answer_tokens: Annotated[int, Option("--answer-tokens", help="In the mean.", min=1)] = 128
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One run."""

    shape: Shape = Shape()
    durations: Durations = Durations()
    asked: Asked = Asked()
    adaptive: Annotated[bool, Option(help="Whether coordinators let go of speculation where it does not pay.")] = True
    warm_up_seconds: Annotated[float, Option(help="On the virtual clock, before anything counts.", min=0.0)] = 4.0
    seconds: Annotated[float, Option(help="The same, while it counts.", min=0.1)] = 6.0
