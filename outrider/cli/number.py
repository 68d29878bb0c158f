"""A number that a flag is given."""

from __future__ import annotations

import math

import typer


def finite(number: float | None) -> float | None:
    """The flag's number, if it has one. Raises typer.BadParameter for infinity, and for nan, which passes all
    bounds."""
    if number is not None and not math.isfinite(number):
        raise typer.BadParameter(f"{number} is no number that can be counted with")
    return number
