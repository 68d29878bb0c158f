"""What windows cost and bring on the virtual clock: sent when the next round needs them, and sent at once.

`python -m bench.simulate.windows` prints the table that docs/experiments/0046-windows.md quotes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product
from typing import Annotated, NamedTuple, TypeVar

import typer
from rich.console import Console

from bench.columns import new_table
from bench.rivals.modes import PolicyName
from bench.rivals.ruled import policy_of
from bench.simulate.oracle import OracleText
from bench.simulate.virtual import Speculation, Times, VirtualStack
from outrider.core.protocol.validation import AUTOMATIC_WIDTH_MAX
from outrider.core.schedule.draft_run import LEVELS_MAX

T = TypeVar("T", int, float)


class Pair(NamedTuple):
    """A target and a draft of it. Times are in milliseconds."""

    name: str
    verify: float
    verify_token: float
    """What each further token adds."""
    draft: float
    draft_node: float
    alpha: float
    """Chance that a first guess is right."""


PAIRS = (
    Pair("cheap draft", 18.0, 0.15, 0.6, 0.1, 0.8),
    Pair("costly draft", 18.0, 0.15, 4.0, 0.4, 0.8),
    Pair("small target", 2.5, 0.1, 0.5, 0.06, 0.75),
)
"""The first is about the wide pair, the last the bundled one."""

PAUSE_MS = 0.12
"""Between two runs of a drafter."""


class Cost(NamedTuple):
    """What a run came to, for each round of a session."""

    tokens: float
    windows: float
    messages: float
    ms_per_token: float


def measure(
    pair: Pair,
    policy: PolicyName | None,
    num_sessions: int,
    *,
    delay_ms: float = 0.3,
    scatter: float = 0.1,
    message_ms: float = 0.0,
    num_tokens: int = 400,
) -> Cost:
    """All sessions at once, each answer of so many tokens. A verify step takes up to `scatter` more or less of its
    time, and a message of windows `message_ms` of the drafter's core."""
    rng = random.Random(7)
    texts = [OracleText(pair.alpha, num_tokens, width=AUTOMATIC_WIDTH_MAX, seed=seed) for seed in range(num_sessions)]
    times = Times(
        draft=lambda num_nodes: (pair.draft + pair.draft_node * num_nodes) / 1000.0,
        verify=lambda num_nodes: (
            (pair.verify + pair.verify_token * num_nodes) * rng.uniform(1 - scatter, 1 + scatter) / 1000.0
        ),
        delay=delay_ms / 1000.0,
        report=delay_ms / 1000.0,
        pause=PAUSE_MS / 1000.0,
        num_levels_max=LEVELS_MAX,
        message=message_ms / 1000.0,
    )
    stack = VirtualStack(texts, times, Speculation(), policy_of(policy))
    stack.run(lambda: all(map(stack.is_done, range(num_sessions))))
    num_rounds = sum(session.statistics.num_rounds for session in stack.sessions)
    num_done = num_sessions * num_tokens
    return Cost(
        num_done / num_rounds,
        stack.num_windows / num_rounds,
        stack.num_messages / num_rounds,
        1000.0 * stack.clock.now * num_sessions / num_done,
    )


def main(
    sessions: Annotated[str, typer.Option(help="Numbers of sessions.")] = "1,16",
    delays_ms: Annotated[str, typer.Option(help="One way between a worker and the coordinator.")] = "0.3,10",
    messages_ms: Annotated[str, typer.Option(help="What a message takes of the drafter's core.")] = "0,0.3",
    num_tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 400,
) -> None:
    """Compares policies."""
    table = new_table("for each round of a session", "tokens", "windows", "messages", "ms/token")
    cases = product(PAIRS, _numbers(sessions, int), _numbers(delays_ms, float), _numbers(messages_ms, float))
    for pair, num_sessions, delay_ms, message_ms in cases:
        for name in (None, PolicyName("no_rhythm")):
            cost = measure(pair, name, num_sessions, delay_ms=delay_ms, message_ms=message_ms, num_tokens=num_tokens)
            arm = "" if name is None else ", no_rhythm"
            table.add_row(
                f"{pair.name}, {num_sessions} x, {delay_ms:g} ms away, {message_ms:g} ms a message{arm}",
                *(f"{each:.2f}" for each in cost),
            )
    Console(width=120).print(table)


def _numbers(text: str, number: Callable[[str], T]) -> list[T]:
    return [number(each) for each in text.split(",")]


if __name__ == "__main__":
    typer.run(main)
