"""Where a command finds the coordinator."""

from __future__ import annotations

from typing import Annotated

import typer

from outrider.core.protocol.address import parse_address


def checked_address(text: str | None) -> str | None:
    """The addresses that a flag gives, if it gives any. Raises typer.BadParameter."""
    try:
        for address in () if text is None else text.split(","):
            parse_address(address.strip())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return text


Address = Annotated[
    str,
    typer.Option(
        help="The coordinator, or several with commas between them: when one is lost, another goes on.",
        metavar="HOST:PORT,...",
        callback=checked_address,
    ),
]
"""One coordinator or several."""
