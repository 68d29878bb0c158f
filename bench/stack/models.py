"""The models that are measured, and how workers load them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """As they are asked for; `prepared` makes every choice that is left open."""

    target: Annotated[
        str,
        Option(
            help="Folder or hub name of the target model; default: the bundled one.",
            metavar="MODEL",
            show_default=False,
        ),
    ] = ""
    draft: Annotated[
        str,
        Option(
            help="The same of the draft model; default: the bundled one.",
            metavar="MODEL",
            show_default=False,
        ),
    ] = ""
    ngram_table: Annotated[
        str | None,
        Option(
            envvar="OUTRIDER_NGRAM_TABLE",
            help="File of python -m recipes.ngram_table, for verifiers and for drafters without a model. Default: the "
            "bundled one, or none if --target is given.",
            metavar="FILE",
        ),
    ] = None
    target_device: Annotated[str, Option(help="Device of the target: cpu, cuda, cuda:0, ...")] = "cpu"
    draft_device: Annotated[str, Option(help="Device of the draft: cpu, cuda, cuda:0, ...")] = "cpu"
    dtype: Annotated[str, Option(help="float32, bfloat16 or float16.")] = "bfloat16"
    compile: Annotated[str, Option(help="Compile the workers' forward passes: auto, on or off.")] = "auto"
    wide: Annotated[
        bool, Option("--wide", help="Widen the target's MLPs first: the same text at ten times the cost.")
    ] = False


BUNDLED = Models()


def settings(options: DataclassInstance, models: Models) -> dict[str, Any]:
    """What a result says of `options`, and of the `models` that theirs came to: of files and folders the names alone,
    for the rest tells of a machine."""
    said = asdict(options)
    del said["models"]
    named = {name: Path(getattr(models, name) or "").name for name in ("target", "draft", "ngram_table")}
    return asdict(models) | named | said
