"""Flags of a command, made of the fields of the options that it takes."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter, Signature
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import typer

from outrider.cli import value
from outrider.core.protocol.errors import OutriderError

Part = TypeVar("Part", str, int, float)


class NotInstalledError(OutriderError):
    """Something that the benchmark needs is not installed."""


class Only(NamedTuple):
    """In the annotation of options: a command has flags for these fields alone, and the others keep their defaults."""

    names: tuple[str, ...]


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with flags in the place of each parameter that is a dataclass: one for each of its fields, and of those
    of the dataclasses within it. What typer shall know of a flag stands in the field's annotation.

    The result raises NotInstalledError where `command` imports what is not there.
    """
    hints = inspect.signature(command, eval_str=True).parameters
    parameters: list[Parameter] = []
    for parameter in hints.values():
        parameters += _flags(parameter.annotation) if _is_options(parameter.annotation) else [parameter]

    def run(**values: Any) -> None:
        given = {
            name: _made(parameter.annotation, values) if _is_options(parameter.annotation) else values[name]
            for name, parameter in hints.items()
        }
        try:
            command(**given)
        except ModuleNotFoundError as error:
            raise NotInstalledError(
                f"{error.name} is not installed: pip install --editable '.[engine,bench]'"
            ) from error

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {}
    run.__dict__["__signature__"] = Signature([each.replace(kind=Parameter.KEYWORD_ONLY) for each in parameters])
    return run


def listed(
    kind: type[Part],
    help: str,
    *names: str,
    allows_0: bool = False,
    taken_by: Callable[[Sequence[Part]], object] = tuple,
) -> Any:
    """A flag whose values stand between commas, for a field that is a tuple of `kind`, and that `taken_by` takes.
    Numbers must be above 0, or at least 0 if the flag `allows_0`. It is called as the field, or by its own `names`."""

    def parse(text: str | tuple[Part, ...]) -> tuple[Part, ...]:
        if isinstance(text, tuple):  # the default
            return text
        try:
            parts = tuple(kind(part) for part in text.split(",")) if text else ()
        except ValueError as error:
            raise typer.BadParameter(f"{text!r} is no list of numbers; write 1,2,3") from error
        if not all(isinstance(part, str) or 0 < part < math.inf or (allows_0 and part == 0) for part in parts):
            raise typer.BadParameter(f"{text} has a number that is not {'at least' if allows_0 else 'above'} 0")
        return parts

    return typer.Option(*names, parser=parse, callback=value.taken_by(taken_by), metavar="A,B,...", help=help)


DelaysMs = Annotated[
    tuple[float, ...],
    listed(
        float,
        "How many milliseconds longer messages between a coordinator and its workers take each way, such as 0,1,5,20.",
        "--delay-ms",
        allows_0=True,
    ),
]
"""Networks to measure with."""

Temperatures = Annotated[
    tuple[float, ...],
    typer.Option(
        "--temperature", help="May be repeated.", min=0.0, callback=lambda given: [value.finite(each) for each in given]
    ),
]
"""Of the requests that are measured, one after another."""


def _is_options(annotation: Any) -> bool:
    return dataclasses.is_dataclass(_bare(annotation))


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _fields(annotation: Any) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """Fields of a dataclass that have flags, with their annotations."""
    kind = _bare(annotation)
    only = [each.names for each in get_args(annotation)[1:] if isinstance(each, Only)]
    hints = get_type_hints(kind, include_extras=True)
    for each in dataclasses.fields(kind):
        if not only or each.name in only[0]:
            yield each, hints[each.name]


def _flags(annotation: Any) -> Iterator[Parameter]:
    for each, hint in _fields(annotation):
        if _is_options(hint):
            yield from _flags(hint)
        else:
            default = Parameter.empty if each.default is dataclasses.MISSING else each.default
            yield Parameter(each.name, Parameter.KEYWORD_ONLY, default=default, annotation=_flag_type(hint))


def _flag_type(hint: Any) -> Any:
    """As typer has it: a list for a flag that is repeated, any tuple for one that parses its text."""
    bare = _bare(hint)
    if get_origin(bare) is not tuple:
        return hint
    parses = any(isinstance(each, typer.models.OptionInfo) and each.parser for each in get_args(hint)[1:])
    return Annotated[tuple if parses else list[get_args(bare)[0]], *get_args(hint)[1:]]


def _made(annotation: Any, values: Mapping[str, Any]) -> Any:
    """The options that the flags' `values` describe."""
    given: dict[str, Any] = {}
    for each, hint in _fields(annotation):
        if _is_options(hint):
            given[each.name] = _made(hint, values)
        else:
            one = values[each.name]
            given[each.name] = tuple(one) if isinstance(one, list) else one
    return _bare(annotation)(**given)
