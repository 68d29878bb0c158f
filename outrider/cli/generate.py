"""One generation from a running coordinator."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from outrider.cli.display import Display, legend
from outrider.cli.request import Request
from outrider.cli.table import closing_table, comparison
from outrider.client import NO_CREDENTIALS, Answer, Credentials, GenerationClient, gather
from outrider.core.coordinate.explanation import Explanation, explanation
from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.core.protocol.printable import uncontrolled


async def generate(
    request: Request, address: str, display: Display | None = None, credentials: Credentials = NO_CREDENTIALS
) -> Answer:
    """Sends the request to the coordinator at `address`, or to one of several that stand there with commas between
    them, shows its events, and returns them gathered.

    Raises OutriderError.
    """
    try:
        async with GenerationClient(address, credentials) as client:
            return await gather(
                client.generate(request.prompt, request.options), None if display is None else display.show
            )
    except WorkerUnavailableError as error:
        raise WorkerUnavailableError(f"{address}: {error} (`outrider up` starts the services)") from error


def explanations(answer: Answer, target_only: Answer | None = None) -> list[Explanation]:
    """Why speculation pays or does not, for each completion; measured by `target_only` if there is one."""
    alone = [None] * len(answer.completions) if target_only is None else target_only.completions
    return [
        explanation(ours.finished, None if theirs is None else theirs.finished)
        for ours, theirs in zip(answer.completions, alone, strict=True)
    ]


def conclude(answer: Answer, target_only: Answer | None, out: Console, err: Console) -> None:
    """Writes the legend and the closing table to `out` if that is a terminal; else the table to `err`.

    Below it stands why speculation did not pay, where it did not. With `target_only` the table compares, and a line
    says whether the tokens are the same.
    """
    console = out if out.is_terminal else err
    if out.is_terminal:
        out.print(legend())
    console.print(closing_table(answer, target_only))
    unpaid = next((each for each in explanations(answer, target_only) if each.pays is False), None)
    if unpaid is not None:
        console.print(Text(uncontrolled(unpaid.sentences[0]), "yellow"), soft_wrap=True)
    if target_only is not None:
        console.print(comparison(answer, target_only))
