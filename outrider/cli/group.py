"""Groups of flags: a command takes one value where its command line has many flags."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Any, NamedTuple, get_type_hints


class Group(NamedTuple):
    """Flags that make one value together."""

    parameters: Sequence[inspect.Parameter]
    """What typer makes flags of."""
    make: Callable[..., Any]
    """Takes what was given for each of them, by keyword."""


def parameters_of(kind: type) -> list[inspect.Parameter]:
    """The fields of a dataclass as parameters, with their defaults."""
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default if field.default is not MISSING else inspect.Parameter.empty,
            annotation=hints[field.name],
        )
        for field in fields(kind)
    ]


def grouped(**groups: Group) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Of the command below, the parameters that are named here get the values that their groups make."""

    def expand(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def call(**values: Any) -> None:
            made = {
                name: group.make(**{each.name: values.pop(each.name) for each in group.parameters})
                for name, group in groups.items()
            }
            command(**made, **values)

        own = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in own
            for each in (groups[parameter.name].parameters if parameter.name in groups else [parameter])
        ]
        call.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        return call

    return expand
