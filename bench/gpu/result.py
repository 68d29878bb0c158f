"""What a device was measured to do, and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from bench.columns import MARK, Column, default_console, in_terminal, number
from bench.gpu.floor import Row

BENCHMARK = "outrider bench gpu"
FORMAT = 1

GOALS = {"target": 1.4, "draft": 1.5}
"""Most that a step may take, by its floor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One row: the same step many times. Times are medians, in ms."""

    role: str
    """target or draft"""
    num_sessions: int
    num_tokens: int
    """Of each session."""
    num_context_tokens: int
    """Of each session."""
    path: str
    """The way that the step went through the model."""
    floor_ms: float
    num_levels: int = 1
    """Such steps in a row, which the device takes by itself."""
    forward_ms: float | None = None
    """Of the forward pass alone, or with the choice of tokens where that ends its graph; None of several levels."""
    attention_ms: float | None = None
    """By how much that is longer than the same one with next to no context."""
    step_ms: float
    """Until tokens are chosen, of all levels."""
    tokens_per_second: float | None = None
    """What verifying alone would give all sessions, at the acceptance that is forced."""
    kernels_per_layer: float | None = None
    """All kernels of the forward pass by its layers; None where the device keeps no record of them."""
    rival_ms: float | None = None
    """vLLM's step over as many tokens."""

    @property
    def row(self) -> Row:
        """What is measured."""
        return Row(self.num_sessions, self.num_tokens, self.num_context_tokens)

    @property
    def ratio(self) -> float:
        """Of the step to its floor."""
        return self.step_ms / self.floor_ms

    @property
    def misses(self) -> bool:
        """Whether it is beyond its goal."""
        return self.ratio > GOALS[self.role]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of what a step does, by itself."""

    name: str
    ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A model of random weights, and what it runs on."""

    model: str
    weight_gb: float
    kv_bytes_per_token: int
    attention: str
    forward_pass: str
    """The paths in use, in the order in which they are tried."""
    token_choice: str
    not_taken: Sequence[str]
    """Faster parts that are not in use, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The whole measurement."""

    benchmark: str = BENCHMARK
    format: int = FORMAT
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    gb_per_s: float
    """Of a copy, measured."""
    tflops: float
    """Of a large product, measured."""
    engines: Mapping[str, Engine]
    """By role."""
    rows: Sequence[Measured]
    no_room: Sequence[str]
    """Rows whose keys and values do not fit."""
    pieces: Sequence[Piece]
    rival: str | None = None
    """vLLM's version."""


def row_name(role: str, row: Row, num_levels: int = 1) -> str:
    """As tables call a row."""
    levels = f", {num_levels} levels" if num_levels > 1 else ""
    return f"{role} {row.num_sessions} x {row.num_tokens}, {row.num_context_tokens}{levels}"


_COLUMNS = (
    Column[Measured]("floor", lambda row: row.floor_ms, number(2), "floor, ms"),
    Column[Measured]("forward", lambda row: row.forward_ms, number(2), "forward pass, ms"),
    Column[Measured]("attention", lambda row: row.attention_ms, number(2), "attention, ms"),
    Column[Measured]("step", lambda row: row.step_ms, number(2), "step, ms"),
    Column[Measured](
        "ratio", lambda row: row, lambda row: f"{row.ratio:.2f}{MARK if row.misses else ''}", "step by floor"
    ),
    Column[Measured]("path", lambda row: row.path, str, "path"),
    Column[Measured]("kernels", lambda row: row.kernels_per_layer, number(1), "kernels a layer"),
    Column[Measured]("tokens/s", lambda row: row.tokens_per_second, number(0), "tokens/s"),
    Column[Measured]("vLLM", lambda row: row.rival_ms, number(2), "vLLM's step, ms"),
)


PIECE_COLUMNS = (Column[Piece]("ms", lambda piece: piece.ms, number(3), "ms"),)


def columns(result: Result) -> list[Column[Measured]]:
    """Those of which something is known."""
    return [column for column in _COLUMNS if any(column.get(row) is not None for row in result.rows)]


def sections(result: Result) -> list[list[tuple[str, Measured]]]:
    """The rows of each model."""
    return [
        [(row_name(role, row.row, row.num_levels), row) for row in result.rows if row.role == role]
        for role in result.engines
    ]


def heading(result: Result) -> str:
    """What the table is of, in a line."""
    target, draft = (result.engines[role].model for role in GOALS)
    return (
        f"{target} and {draft}, random, {result.settings['dtype']}: steps in ms on {result.machine['device']}, which "
        f"copies {result.gb_per_s:.0f} GB/s and multiplies at {result.tflops:.0f} TFLOP/s"
    )


def legend(result: Result) -> str:
    """What rows and columns are, what misses its goal, and what was not measured."""
    missing = sum(row.misses for row in result.rows)
    acceptance = result.settings["acceptance"]
    said = [
        "Rows: sessions x tokens of each, tokens of context of each. floor: weights and keys and values read once, at "
        "the speed of a copy, or products at that of a large one. forward: the forward pass. attention: by how much "
        "that is longer than with next to no context. step: until the host knows the tokens. ratio: step by floor; "
        f"{missing} of {len(result.rows)} are beyond {GOALS['target']:g} (target) or {GOALS['draft']:g} (draft) "
        f"({MARK}). tokens/s: of all sessions, were drafts there at once and each right with a chance of "
        f"{acceptance:g}, which is forced."
    ]
    if any(row.num_levels > 1 for row in result.rows):
        said.append("levels: so many levels of a draft in one run, as a drafter has them; the floor of as many steps.")
    if result.no_room:
        said.append(f"No room for keys and values: {'; '.join(result.no_room)}.")
    if result.rival:
        said.append(f"vLLM {result.rival}: time of its steps by its clock, nothing accepted, n-gram drafts.")
    for role, engine in result.engines.items():
        said.append(
            f"{role}: {engine.weight_gb:.2f} GB a step, attention {engine.attention}, forward pass "
            f"{engine.forward_pass}, choice {engine.token_choice}{_why(engine)}."
        )
    if result.machine["device"] == "cpu":
        said.append("A CPU was measured to try the code: these figures mean nothing.")
    return "\n".join(said)


def _why(engine: Engine) -> str:
    return f"; not taken: {'; '.join(engine.not_taken)}" if engine.not_taken else ""


def show(result: Result, console: Console | None = None) -> None:
    """The table of steps, then what the target's parts take."""
    console = console or default_console()
    console.print(in_terminal(heading(result), columns(result), *sections(result)))
    parts = [(piece.name, piece) for piece in result.pieces]
    console.print(in_terminal("Parts of the target's steps", PIECE_COLUMNS, parts))
    console.print(legend(result), style="dim", markup=False)
