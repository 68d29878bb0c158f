"""Where a command finds the coordinator."""

from __future__ import annotations

from typing import Annotated

import typer

from outrider.core.protocol.address import parse_address


def _checked(text: str) -> str:
    try:
        for address in text.split(","):
            parse_address(address.strip())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return text


Address = Annotated[
    str,
    typer.Option(
        help="The coordinator, or several with commas between them: when one is lost, another goes on.",
        metavar="HOST:PORT,...",
        callback=_checked,
    ),
]
"""One coordinator or several."""
