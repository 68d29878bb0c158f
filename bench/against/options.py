"""What `outrider bench against` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from bench.flags import Temperatures
from bench.stack.checkout import checkout_at
from bench.stack.models import BUNDLED, Models
from outrider.cli.value import taken_by


@dataclass(frozen=True, slots=True, kw_only=True)
class AgainstOptions:
    """Everything that the comparison of two checkouts depends on, but for the machine."""

    other: Annotated[
        Path, Argument(help="Folder of the other checkout.", metavar="OTHER_CHECKOUT", callback=taken_by(checkout_at))
    ]
    other_python: Annotated[
        Path | None,
        Option(
            help="The Python that runs its services; default: that of its .venv, or the one that runs this.",
            metavar="FILE",
            exists=True,
        ),
    ] = None
    models: Models = BUNDLED
    num_clients: Annotated[
        int, Option("--clients", help="Requests at a time: so many clients ask again when they are answered.", min=1)
    ] = 1
    num_prompts: Annotated[
        int,
        Option(help="Prompts to measure at each temperature; three rounds of all clients are made at least.", min=2),
    ] = 24
    warm_ups: Annotated[int, Option(help="Rounds of all clients before those that count.", min=1)] = 2
    num_lives: Annotated[
        int,
        Option("--lives", help="How many times the services are started; the checkouts take turns at first.", min=1),
    ] = 2
    max_tokens: Annotated[int, Option(help="Tokens of each answer.", min=2)] = 64
    temperatures: Temperatures = (0.0, 0.8)
    target_only: Annotated[bool, Option("--target-only", help="Do not speculate: compare the targets alone.")] = False
