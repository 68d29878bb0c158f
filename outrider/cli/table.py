"""The closing table: what a generation took, alone or beside the same one by the target alone."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from outrider.client import Answer, Finished, Speculation
from outrider.core.coordinate.statistics import COUNTERS, Counter
from outrider.core.protocol.printable import uncontrolled

_DEPTHS_SHOWN = 6
"""Depths of which the table tells how many rounds accepted so many tokens: what fits beside the labels."""


class _Row(NamedTuple):
    label: str
    shown: str
    number: float | None = None
    """Set where the ratio of two generations means something."""


def closing_table(answer: Answer, target_only: Answer | None = None) -> Table:
    """A column for `answer`, all its completions together; with `target_only` a second one, and their ratio."""
    table = Table(show_header=target_only is not None, header_style="bold")
    table.add_column("", style="dim", no_wrap=True)
    table.add_column("speculative", justify="right")
    told = [each.speculation for each in (answer, target_only) if each is not None]
    counters = [each for each in COUNTERS if each.row and any(_has_something(counts, each) for counts in told)]
    rows = _rows(answer, counters)
    if target_only is None:
        for row in rows:
            table.add_row(row.label, uncontrolled(row.shown))
        return table
    table.add_column("target alone", justify="right")
    table.add_column("ratio", justify="right", style="bold")
    for row, other in zip(rows, _rows(target_only, counters), strict=True):
        table.add_row(row.label, uncontrolled(row.shown), uncontrolled(other.shown), _ratio(row, other))
    return table


def comparison(answer: Answer, target_only: Answer) -> Text:
    """Whether speculation was lossless: one line."""
    pairs = list(zip(answer.completions, target_only.completions, strict=True))
    lists = "The two token lists" if len(pairs) == 1 else f"The two token lists of all {len(pairs)} completions"
    for number, (ours, theirs) in enumerate(pairs):
        if ours.token_ids != theirs.token_ids:
            if len(pairs) > 1:
                lists = f"The two token lists of completion {number}"
            return Text(
                f"{lists} differ from generated token {_first_difference(ours.token_ids, theirs.token_ids) + 1} on. "
                "Equality is promised in float32; in bfloat16 and float16 near-ties may fall either way.",
                "bold red",
            )
    num_tokens = sum(len(ours.token_ids) for ours, _ in pairs)
    return Text(f"{lists} are identical ({num_tokens} tokens).", "green")


def _first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    different = (i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1])
    return next(different, min(len(ours), len(theirs)))


def _has_something(speculation: Speculation, counter: Counter) -> bool:
    """Whether it is not a share of nothing."""
    return not counter.whole or getattr(speculation, counter.whole) > 0


def _rows(answer: Answer, counters: Sequence[Counter]) -> list[_Row]:
    speculation = answer.speculation
    finished = [completion.finished for completion in answer.completions]
    num_tokens = sum(each.usage.num_generated_tokens for each in finished)
    num_prompt_tokens = sum(each.usage.num_prompt_tokens for each in finished)
    num_cached_tokens = sum(each.usage.num_cached_prompt_tokens for each in finished)
    first_token_ms = min(each.timings.first_token_ms for each in finished)
    total_ms = max(each.timings.total_ms for each in finished)
    tokens_per_second = num_tokens / total_ms * 1000.0 if total_ms else 0.0
    return [
        _Row("prompt tokens", f"{num_prompt_tokens} ({num_cached_tokens} cached)"),
        _Row("tokens", f"{num_tokens} ({_counted(each.reason.name for each in finished)})"),
        _Row("acceptance length", f"{speculation.acceptance_length:.2f} tokens per round"),
        _Row("acceptance rate", _acceptance_rate(speculation)),
        _Row(
            "accepted by depth", " ".join(f"{share:.0%}" for share in speculation.acceptance_by_depth[:_DEPTHS_SHOWN])
        ),
        *(_count(speculation, counter) for counter in counters),
        _Row("tokens/s", f"{tokens_per_second:.1f}", tokens_per_second),
        _Row("time to first token", f"{first_token_ms:.0f} ms", first_token_ms),
        _Row("total time", f"{total_ms:.0f} ms", total_ms),
        _Row("mode", "; ".join(dict.fromkeys(_mode(each) for each in finished))),
    ]


def _count(speculation: Speculation, counter: Counter) -> _Row:
    count = getattr(speculation, counter.field)
    if counter.whole:
        return _Row(counter.row, f"{count} of {getattr(speculation, counter.whole)} {counter.of_what}")
    return _Row(counter.row, str(count), count)


def _counted(names: Iterable[str]) -> str:
    """Each name once; with how often if they differ."""
    counts = collections.Counter(name.lower().replace("_", " ") for name in names)
    return ", ".join(name if len(counts) == 1 else f"{count} {name}" for name, count in counts.items())


def _acceptance_rate(speculation: Speculation) -> str:
    if not speculation.num_draft_tokens:
        return "no draft tokens"
    return f"{speculation.acceptance_rate:.0%} ({speculation.num_accepted_tokens} of {speculation.num_draft_tokens})"


def _mode(finished: Finished) -> str:
    mode = finished.mode.name.lower().replace("_", " ")
    return f"{mode}: {finished.mode_reason}" if finished.mode_reason else mode


def _ratio(row: _Row, other: _Row) -> str:
    return f"{row.number / other.number:.2f} x" if row.number is not None and other.number else ""
