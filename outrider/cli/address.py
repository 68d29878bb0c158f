"""Where a command finds the coordinator."""

from __future__ import annotations

from typing import Annotated

import typer

from outrider.cli.value import taken_by
from outrider.core.protocol.address import parse_address


def _check_addresses(text: str) -> None:
    for address in text.split(","):
        parse_address(address.strip())


checked_address = taken_by(_check_addresses)
"""For a flag that takes addresses."""

Address = Annotated[
    str,
    typer.Option(
        help="The coordinator, or several with commas between them: when one is lost, another goes on.",
        metavar="HOST:PORT,...",
        callback=checked_address,
    ),
]
"""One coordinator or several."""
