"""What `outrider plan` is told, and its forecast in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from outrider.cli.group import Group, parameters_of
from outrider.cli.model_flags import PairName, parsed_pair
from outrider.cli.value import finite, taken_by
from outrider.core.protocol.validation import SESSIONS_MAX
from outrider.plan.device import parse_device
from outrider.plan.fit import check_fit
from outrider.plan.forecast import DRAFTER_GAIN_MIN, OVER_THE_FLOOR, Engine, Forecast, Load, Prices, Way, forecast
from outrider.plan.shape import Shape, parse_shape

_GIB = 2**30
_KNOWN_SHAPE, _KNOWN_DEVICE = taken_by(parse_shape), taken_by(parse_device)


@dataclass(frozen=True, kw_only=True)
class _PlanFlags:
    target: Annotated[
        str | None,
        typer.Option(help="A known model, or a folder with config.json.", metavar="MODEL", callback=_KNOWN_SHAPE),
    ] = None
    draft: Annotated[
        str | None, typer.Option(help="The same of the draft model.", metavar="MODEL", callback=_KNOWN_SHAPE)
    ] = None
    pair: PairName = None
    target_device: Annotated[
        str, typer.Option(help="A known device, or GiB:GB/s:TFLOPS.", metavar="DEVICE", callback=_KNOWN_DEVICE)
    ] = "h200"
    target_devices: Annotated[int, typer.Option(help="So many of it hold one target, tensor parallel.", min=1)] = 1
    draft_device: Annotated[
        str, typer.Option(help="The same for drafters.", metavar="DEVICE", callback=_KNOWN_DEVICE)
    ] = "l4"
    acceptance: Annotated[
        float, typer.Option(help="Chance that a draft token is the target's.", min=0, max=1, callback=finite)
    ] = 0.8
    sessions: Annotated[int, typer.Option(help="Completions at a time at a verifier.", min=1, max=SESSIONS_MAX)] = 1
    context: Annotated[int, typer.Option(help="Tokens of each, prompt and answer.", min=1)] = 4096
    delay_ms: Annotated[float, typer.Option(help="One way between drafter and verifier.", min=0, callback=finite)] = 0.3
    weight_bytes: Annotated[
        float | None,
        typer.Option(
            help="Of the target's weights: 2, 1 or 0.5; a quantized folder tells.", min=0.1, max=4, callback=finite
        ),
    ] = None
    target_price: Annotated[
        float | None, typer.Option(help="Dollars an hour of the target's device.", min=0, callback=finite)
    ] = None
    draft_price: Annotated[
        float | None, typer.Option(help="Dollars an hour of a drafter's device.", min=0, callback=finite)
    ] = None


def _shapes(flags: _PlanFlags) -> tuple[Shape, Shape]:
    """Of target and draft. Raises OutriderError, and typer.BadParameter."""
    if (pair := parsed_pair(flags.pair, flags.target, flags.draft)) is not None:
        return pair.target_shape, pair.draft_shape
    if flags.target is None or flags.draft is None:
        raise typer.BadParameter("name two models with --target and --draft, or a pair with --pair")
    check_fit(flags.target, flags.draft)
    return parse_shape(flags.target), parse_shape(flags.draft)


def _forecast(flags: _PlanFlags) -> Forecast:
    target, draft = _shapes(flags)
    return forecast(
        Engine(
            target,
            parse_device(flags.target_device),
            flags.weight_bytes or target.number_bytes,
            flags.target_devices,
        ),
        Engine(draft, parse_device(flags.draft_device), draft.number_bytes),
        Load(flags.sessions, flags.context),
        acceptance=flags.acceptance,
        delay_seconds=flags.delay_ms / 1e3,
        prices=Prices(flags.target_price, flags.draft_price),
    )


FORECAST = Group(parameters_of(_PlanFlags), lambda **flags: _forecast(_PlanFlags(**flags)))
"""All that `outrider plan` is told, and what it foresees. Making it raises OutriderError."""


def print_forecast(found: Forecast, out: Console) -> None:
    """A table of the ways, and sentences on what they rest on."""
    table = Table(header_style="bold")
    for heading in ("way", "drafters", "ms per token", "speed-up", "$ per million tokens"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way in found.ways:
        table.add_row(*_cells(way), style="bold" if way is found.best else None)
    out.print(table)
    for sentence in sentences(found):
        out.print(Text(sentence), soft_wrap=True)


def sentences(found: Forecast) -> list[str]:
    """The advice first."""
    apart = found.ways[2]
    told = [_advice(found.best, found)]
    told.append(
        f"A verify step takes {found.verify_seconds * 1e3:.2f} ms, a draft step {found.draft_step:.2f} of it; no "
        f"single verifier exceeds {found.roofline:.1f} times the target alone at this acceptance."
    )
    shared = Load(-(-found.load.num_sessions // max(1, apart.num_drafters)), found.load.num_context_tokens)
    told.append(f"The verifier needs {_memory(found.target, found.load)}, each drafter {_memory(found.draft, shared)}.")
    told.append(
        f"Steps are taken as {OVER_THE_FLOOR} times what memory and arithmetic alone would take; docs/planning.md has "
        "the formulas. `outrider bench` and `outrider explain` measure what this only expects."
    )
    return told


def forecast_object(found: Forecast) -> dict[str, Any]:
    """The object that `outrider plan --json` prints."""
    return {
        "best": found.best.name,
        "ways": [
            way._asdict()
            | {"seconds_per_token": way.seconds_per_token if math.isfinite(way.seconds_per_token) else None}
            for way in found.ways
        ],
        "verify_seconds": found.verify_seconds,
        "draft_step": found.draft_step,
        "roofline": found.roofline if math.isfinite(found.roofline) else None,
        "target_memory_bytes": found.target.memory_bytes(found.load),
    }


def _advice(best: Way, found: Forecast) -> str:
    alone, together, apart = found.ways
    if best is alone:
        return "Do not speculate: at this load, pair and delay the target alone is as fast."
    if best is together:
        gain = 1.0 - apart.seconds_per_token / together.seconds_per_token
        return (
            f"Co-locate the drafter with the target (`outrider up --in-turn`): a device of its own would gain "
            f"{max(0.0, gain):.0%}, and less than {DRAFTER_GAIN_MIN:.0%} is not worth one."
        )
    return (
        f"Give {apart.num_drafters} drafter{'s' if apart.num_drafters > 1 else ''} a device each beside every verifier."
    )


def _memory(engine: Engine, load: Load) -> str:
    gib = engine.num_devices * engine.device.gib
    return (
        f"{engine.memory_bytes(load) / _GIB:.1f} of {engine.devices}'s {gib:.0f} GiB for "
        f"{load.num_sessions} session{'s' if load.num_sessions > 1 else ''}"
    )


def _cells(way: Way) -> tuple[str, ...]:
    if not math.isfinite(way.seconds_per_token):
        return (way.name, "-", "no room", "-", "-")
    usd = f"{way.usd_per_million:.2f}" if way.usd_per_million is not None else "-"
    return (way.name, str(way.num_drafters), f"{way.seconds_per_token * 1e3:.2f}", f"{way.speed_up:.2f}", usd)
