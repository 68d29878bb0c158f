"""Flags that say what is served, by how many, and on what."""

from __future__ import annotations

from typing import Annotated

import typer

from draft_service.config import DraftConfig
from outrider.cli.value import taken_by
from outrider.plan.pair import PAIRS, Pair, parse_pair

Target = Annotated[
    str | None, typer.Option(help="Folder or hub name of the target model; default: the bundled one.", metavar="MODEL")
]
Draft = Annotated[
    str | None,
    typer.Option(
        help="The same of the draft model, or ngram: guesses from what the text repeats, without a model. Default: the "
        "bundled one, or none if --target is given.",
        metavar="MODEL",
    ),
]
Drafts = Annotated[
    str | None,
    typer.Option(
        "--draft",
        help="The same of the draft model, or ngram: guesses from what the text repeats, without a model. Several with "
        "commas: each is tried, and used as far as it is worth it. Default: the bundled one, or none if --target is "
        "given.",
        metavar="MODEL",
    ),
]
PairName = Annotated[
    str | None,
    typer.Option(
        "--pair",
        help=f"Two public models in place of --target and --draft: {', '.join(PAIRS)}.",
        metavar="NAME",
        callback=taken_by(parse_pair),
    ),
]
NgramTable = Annotated[
    str | None,
    typer.Option(
        envvar="OUTRIDER_NGRAM_TABLE",
        help="File of python -m recipes.ngram_table, for the verifier and for drafters without a model. Default: the "
        "bundled one, or none if --target is given.",
        metavar="FILE",
    ),
]
SERVICES_MAX = 64
"""Most services of a kind that one command starts: more than a machine has use for."""

Verifiers = Annotated[int, typer.Option(help="How many verify services to start.", min=1, max=SERVICES_MAX)]
Drafters = Annotated[
    int, typer.Option(help="How many draft services to start of each draft model.", min=1, max=SERVICES_MAX)
]
Coordinators = Annotated[
    int, typer.Option(help="How many coordinators to start; they share the others.", min=1, max=SERVICES_MAX)
]
NoDraft = Annotated[bool, typer.Option("--no-draft", help="Start no draft service: the target alone.")]
TargetDevice = Annotated[str, typer.Option(help="Device of the target: cpu, cuda, cuda:0, ...")]
DraftDevice = Annotated[
    str | None,
    typer.Option(
        help="Device of the draft: cpu, cuda, cuda:0, ... Default: cpu, or with --in-turn the target's.",
        show_default=False,
    ),
]
InTurn = Annotated[
    bool,
    typer.Option(
        "--in-turn",
        help="Draft in the verify service's own process, in turn with the target, on the same device or on all cores: "
        "for one machine without a second device. No draft service is started.",
    ),
]
_PARALLEL = DraftConfig.model_fields["parallel"].description or ""

Parallel = Annotated[
    str | None,
    typer.Option(help=f"{_PARALLEL[:1].upper()}{_PARALLEL[1:]}. Default: auto.", metavar="auto|off|K"),
]
Compile = Annotated[
    str | None,
    typer.Option(
        "--compile",
        help="Compiled forward passes: auto (meanwhile), first (before serving, where that works), on (or not at all) "
        "or off. Default: auto; a model is compiled once, which takes a minute.",
        metavar="auto|first|on|off",
    ),
]
CompileFirst = Annotated[
    str | None,
    typer.Option(
        "--compile",
        help="Compiled forward passes: first (before serving, where that works), on (or not at all), auto (meanwhile) "
        "or off. Default: first on a CPU, since what is compared must not change meanwhile; a model's first start then "
        "takes a minute longer.",
        metavar="first|on|auto|off",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="auto, float32, bfloat16 or float16; auto is that of the stored weights. Default: auto, but on a CPU "
        "float32, where the text is exactly the target's.",
    ),
]


def parsed_pair(name: str | None, target: str | None, draft: str | None) -> Pair | None:
    """The pair that `--pair` names, if it is given. Raises typer.BadParameter if models are named beside it."""
    if name is None:
        return None
    if target is not None or draft is not None:
        raise typer.BadParameter("--pair names both models: leave --target and --draft out")
    return parse_pair(name)
