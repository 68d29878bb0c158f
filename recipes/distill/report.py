"""What a run reached: a table for the terminal, and the README of the folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import NamedTuple

from rich.table import Table

from recipes.distill.acceptance import Measured, added
from recipes.distill.options import Options

README = "README.md"
"""Written last: a folder that has it is finished."""

PLOT = "acceptance.png"
"""The picture's file, beside the README."""


class Reached(NamedTuple):
    """The acceptance on held-out text before and after training."""

    before: Measured
    """Without drafting by masks where the draft had no mask token."""
    after: Measured

    def lengths(self, way: str) -> tuple[float | None, float]:
        """Accepted lengths before and after, over the rounds of all temperatures."""
        earlier = self.before.get(way)
        return added(earlier.values()).length if earlier else None, added(self.after[way].values()).length


def rows(reached: Reached) -> Iterator[list[str]]:
    """Way, temperature, before or after, accepted length, then the part of rounds by depth."""
    for way, of in reached.after.items():
        for temperature in of:
            for when, measured in (("before", reached.before), ("after", reached.after)):
                if way in measured:
                    found = measured[way][temperature]
                    shares = [f"{share:.3f}" for share in found.by_depth]
                    yield [way, f"{temperature:g}", when, f"{found.length:.3f}", *shares]


def headers(num_depths: int) -> list[str]:
    """Of the columns of `rows`."""
    return ["drafting", "temperature", "", "accepted length", *(f"depth {depth}" for depth in range(1, num_depths + 1))]


def table(reached: Reached, num_depths: int) -> Table:
    """For the terminal."""
    found = Table(*headers(num_depths))
    for row in rows(reached):
        found.add_row(*row)
    return found


def sentences(reached: Reached) -> list[str]:
    """The accepted length of each way over all temperatures, in words."""
    found: list[str] = []
    for way in reached.after:
        before, after = reached.lengths(way)
        change = f"; {before:.3f} before, {after / before - 1:+.1%}" if before else ""
        found.append(f"Drafting by {way}, a round commits {after:.3f} tokens of held-out text{change}.")
    return found


def readme(reached: Reached, options: Options, command: Sequence[str], num_parameters: int) -> str:
    """How the draft was made and what it reaches."""
    lines = [headers(options.depths), ["---"] * len(headers(options.depths)), *rows(reached)]
    settings = json.dumps({**asdict(options), "loss": options.divergence}, indent=2, default=str)
    table = "\n".join(f"| {' | '.join(row)} |" for row in lines)
    masks = (
        "\n`pard_token` in config.json is its mask token: one pass over a token and masks behind it guesses several "
        "tokens.\n"
        if options.parallel
        else ""
    )
    return f"""# A draft model for `{options.target.resolve().name}`

Made by

```sh
{" ".join(command)}
```

It has {num_parameters:,} parameters. The target wrote {options.num_texts:,} texts, from which it learned in \
{options.steps:,} steps of {options.batch} texts. To serve it: \
`outrider up --target TARGET --draft THIS_FOLDER`.
{masks}
## Acceptance on held-out text

{" ".join(sentences(reached))} The text is the target's own, on prompts that training has not seen; guesses are those \
that a drafter makes with the noise of the request, {options.depths} a round. By depth stands the part of rounds that \
accepted as many guesses or more.

{table}

![acceptance by depth]({PLOT})

## Settings

```json
{settings}
```
"""
