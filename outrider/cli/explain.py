"""Why speculation pays for a request or does not: the request is made, and its own figures tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from outrider.cli.generate import explanations, generate
from outrider.cli.request import Request
from outrider.client import NO_CREDENTIALS, Credentials
from outrider.core.coordinate.explanation import Explanation
from outrider.core.protocol.printable import uncontrolled


async def explain(
    request: Request, address: str, *, compare: bool, credentials: Credentials = NO_CREDENTIALS
) -> list[Explanation]:
    """Generates at the coordinator at `address`, and with `compare` the same by the target alone.

    Returns an explanation for each completion. Raises OutriderError.
    """
    answer = await generate(request, address, credentials=credentials)
    if not compare:
        return explanations(answer)
    alone = await generate(request.by_target_alone(answer.started.seed), address, credentials=credentials)
    return explanations(answer, alone)


def print_explanations(found: Sequence[Explanation], out: Console) -> None:
    """A line for each sentence; several completions are told apart by their numbers."""
    for number, each in enumerate(found):
        if len(found) > 1:
            out.print(Text(f"Completion {number}:", "bold"))
        for sentence in each.sentences:
            out.print(Text(uncontrolled(sentence)), soft_wrap=True)


def explanations_object(found: Sequence[Explanation], *, as_list: bool) -> dict[str, Any]:
    """The object that `outrider explain --json` prints. See `json_object` of an answer for `as_list`."""
    objects: list[dict[str, Any]] = [{"pays": each.pays, "explanation": each.sentences} for each in found]
    if as_list:
        return {"completions": objects}
    (only,) = objects
    return only
