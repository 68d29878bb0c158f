"""A value that a flag is given: what cannot be is said before anything starts, by the flag's name, with status 2."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import typer

from outrider.core.protocol.errors import OutriderError


def taken_by(parse: Callable[[Any], object]) -> Callable[[Any], Any]:
    """A flag's callback that hands on its value as it is, if it has one and `parse` takes it; else, where that raises
    OutriderError or ValueError, it raises typer.BadParameter with their words."""

    def checked(value: Any) -> Any:
        try:
            if value is not None:
                parse(value)
        except (OutriderError, ValueError) as error:
            raise typer.BadParameter(str(error)) from error
        return value

    return checked


def _check_finite(number: float) -> None:
    # nan passes all bounds
    if not math.isfinite(number):
        raise ValueError(f"{number} is no number that can be counted with")


finite = taken_by(_check_finite)
"""For a flag that takes a number."""
