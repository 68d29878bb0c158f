"""One measurement of a device from its options to its result."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import NamedTuple

import torch
from rich.console import Console
from transformers import PreTrainedConfig

from bench.gpu import pieces, rival
from bench.gpu.clock import Clock, clock_of
from bench.gpu.device import device_of, facts
from bench.gpu.floor import Reach, Reads, Row, floor_ms
from bench.gpu.kernels import num_kernels
from bench.gpu.levels import NUM_LEVELS, level_of
from bench.gpu.loading import Loaded, loaded
from bench.gpu.options import TINY, GpuOptions
from bench.gpu.reach import measured_reach
from bench.gpu.result import Engine, Measured, Piece, Result, row_name
from bench.gpu.rounds import NUM_WARM_UPS, Decide, Rounds, Taken, choose, forced, propose
from bench.gpu.shapes import pair_of
from bench.records import as_json, from_json, rounded
from outrider.engine.load.folder import DTYPES
from outrider.engine.transfer import on


class _Asked(NamedTuple):
    """One model, and what is measured of it."""

    role: str
    config: PreTrainedConfig
    tokens: Sequence[int]
    decide: Decide


class _Found(NamedTuple):
    said: Engine
    rows: list[Measured]
    no_room: list[str]
    parts: list[Piece]


def run(options: GpuOptions, console: Console, clock_of: Callable[[torch.device], Clock] = clock_of) -> Result:
    """Measures and returns the result; progress goes to `console`. Raises OutriderError."""
    pair = pair_of(options.shape)
    device = device_of(options.device, is_tiny=options.shape == TINY)
    vllm = None if options.rival_python is None else rival.found_at(options.rival_python)
    clock = clock_of(device)
    asked = (
        _Asked("target", pair.target, options.tokens, choose),
        _Asked("draft", pair.draft, options.draft_tokens, propose),
    )
    with on(device), console.status("the device alone") as status:
        reach = measured_reach(device, DTYPES[options.dtype], clock)
        found = {each.role: _measured(each, options, device, reach, clock, status.update) for each in asked}
        rows = [row for each in found.values() for row in each.rows]
        if vllm is not None:
            status.update("vLLM")
            _free(device)
            rows = rival.beside(vllm, pair.target, options.dtype, rows)
        result = Result(
            machine=facts(device),
            settings={name: value for name, value in asdict(options).items() if name != "rival_python"},
            gb_per_s=reach.gb_per_s,
            tflops=reach.tflops,
            engines={role: each.said for role, each in found.items()},
            rows=rows,
            no_room=[name for each in found.values() for name in each.no_room],
            pieces=found["target"].parts,
            rival=None if vllm is None else vllm.version,
        )
    return from_json(Result, rounded(as_json(result)))


def _measured(
    asked: _Asked, options: GpuOptions, device: torch.device, reach: Reach, clock: Clock, tell: Callable[[str], None]
) -> _Found:
    tell(f"{asked.role}: weights and kernels")
    _free(device)
    model = loaded(asked.role, asked.config, asked.tokens, options, device)
    rounds = Rounds(model.engine, asked.decide, forced(options.acceptance, options.seed), clock)

    def taken(row: Row) -> list[Taken]:
        tell(row_name(asked.role, row))
        rounds.prepare(row)
        return [rounds.step(row) for _ in range(NUM_WARM_UPS + options.num_rounds)][NUM_WARM_UPS:]

    bare_ms = {
        row: median(each.forward_ms for each in taken(row))
        for row in dict.fromkeys((pieces.WEIGHTS_ALONE, *map(pieces.bare, model.plan.rows)))
    }
    rows: list[Measured] = []
    for row in model.plan.rows:
        found = taken(row)
        path = rounds.path
        kernels = num_kernels(lambda row=row: rounds.forward(row), device)
        rows.append(_row(asked, model, row, reach, found, bare_ms[pieces.bare(row)], path, kernels))
    if asked.role == "draft" and model.engine.runs_levels:
        for row in dict.fromkeys(map(level_of, model.plan.rows)):
            tell(row_name(asked.role, row, NUM_LEVELS))
            rows += levels(rounds, row, model.reads, reach, options.num_rounds)
    parts: list[Piece] = []
    if asked.role == "target":
        tell("target: its parts")
        parts += [Piece(name="forward pass over 1 token: weights alone", ms=bare_ms[pieces.WEIGHTS_ALONE])]
        parts += pieces.of_choices(model.engine, clock, options.num_rounds)
        parts += pieces.of_launches(model.engine, rounds, clock, options.num_rounds)
    return _Found(model.said, rows, [row_name(asked.role, row) for row in model.plan.no_room], parts)


def levels(rounds: Rounds, row: Row, reads: Reads, reach: Reach, num_rounds: int) -> list[Measured]:
    """A run of such levels beside the floor of as many steps; nothing if they have to be drafted step by step."""
    rounds.prepare(row)
    found = [rounds.levels(row) for _ in range(NUM_WARM_UPS + num_rounds)][NUM_WARM_UPS:]
    times = [ms for ms in found if ms is not None]
    if not times:
        return []
    return [
        Measured(
            role="draft",
            num_sessions=row.num_sessions,
            num_tokens=row.num_tokens,
            num_context_tokens=row.num_context_tokens,
            num_levels=NUM_LEVELS,
            path=rounds.path,
            floor_ms=NUM_LEVELS * floor_ms(reads, row, reach),
            step_ms=median(times),
        )
    ]


def _free(device: torch.device) -> None:
    """Gives back what models took that nobody uses any more."""
    gc.collect()  # a model and its attention know each other
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _row(
    asked: _Asked,
    model: Loaded,
    row: Row,
    reach: Reach,
    found: Sequence[Taken],
    bare_ms: float,
    path: str,
    kernels: int | None,
) -> Measured:
    forward_ms, step_ms = (median(times) for times in zip(*(each[:2] for each in found), strict=True))
    num_committed = row.num_sessions + fmean(each.num_accepted for each in found)
    return Measured(
        role=asked.role,
        num_sessions=row.num_sessions,
        num_tokens=row.num_tokens,
        num_context_tokens=row.num_context_tokens,
        path=path,
        floor_ms=floor_ms(model.reads, row, reach),
        forward_ms=forward_ms,
        attention_ms=forward_ms - bare_ms,
        step_ms=step_ms,
        tokens_per_second=num_committed / step_ms * 1e3 if asked.role == "target" else None,
        kernels_per_layer=None if kernels is None else kernels / asked.config.num_hidden_layers,
    )
