"""The closing table: what a generation took, alone or beside the same one by the target alone."""

from __future__ import annotations

from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from outrider.cli.answer import Answer
from outrider.client import Finished

_DEPTHS_SHOWN = 6
"""Depths of which the table tells how many rounds accepted so many tokens: what fits beside the labels."""


class _Row(NamedTuple):
    label: str
    shown: str
    number: float | None = None
    """Set where the ratio of two generations means something."""


def closing_table(answer: Answer, target_only: Answer | None = None) -> Table:
    """A column for `answer`; with `target_only` a second one, and the ratio of the first to it."""
    table = Table(show_header=target_only is not None, header_style="bold")
    table.add_column("", style="dim", no_wrap=True)
    table.add_column("speculative", justify="right")
    rows = _rows(answer)
    if target_only is None:
        for row in rows:
            table.add_row(row.label, row.shown)
        return table
    table.add_column("target alone", justify="right")
    table.add_column("ratio", justify="right", style="bold")
    for row, other in zip(rows, _rows(target_only), strict=True):
        table.add_row(row.label, row.shown, other.shown, _ratio(row, other))
    return table


def comparison(answer: Answer, target_only: Answer) -> Text:
    """Whether speculation was lossless: one line."""
    ours, theirs = answer.token_ids, target_only.token_ids
    if ours == theirs:
        return Text(f"The two token lists are identical ({len(ours)} tokens).", "green")
    same = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    where = min(len(ours), len(theirs)) if same is None else same
    return Text(
        f"The two token lists differ from generated token {where + 1} on. Equality is promised in float32; in bfloat16 "
        "and float16 near-ties may fall either way.",
        "bold red",
    )


def _rows(answer: Answer) -> list[_Row]:
    finished = answer.finished
    assert finished is not None
    speculation, timings = finished.speculation, finished.timings
    num_tokens = finished.usage.num_generated_tokens
    tokens_per_second = num_tokens / timings.total_ms * 1000.0 if timings.total_ms else 0.0
    return [
        _Row("tokens", f"{num_tokens} ({finished.reason.name.lower().replace('_', ' ')})"),
        _Row("rounds", str(speculation.num_rounds), speculation.num_rounds),
        _Row("acceptance length", f"{speculation.acceptance_length:.2f} tokens per round"),
        _Row("acceptance rate", _acceptance_rate(finished)),
        _Row(
            "accepted by depth", " ".join(f"{share:.0%}" for share in speculation.acceptance_by_depth[:_DEPTHS_SHOWN])
        ),
        _Row("outcome hits", f"{speculation.num_outcome_hits} of {speculation.num_rejections} rejections"),
        _Row("bonus hits", f"{speculation.num_bonus_hits} of {speculation.num_bonuses} bonus tokens"),
        _Row("rollbacks", str(speculation.num_rollbacks)),
        _Row("stale nodes", f"{speculation.num_stale_nodes} of {speculation.num_drafted_nodes} drafted"),
        _Row("tokens/s", f"{tokens_per_second:.1f}", tokens_per_second),
        _Row("time to first token", f"{timings.first_token_ms:.0f} ms", timings.first_token_ms),
        _Row("total time", f"{timings.total_ms:.0f} ms", timings.total_ms),
        _Row("mode", _mode(finished)),
    ]


def _acceptance_rate(finished: Finished) -> str:
    speculation = finished.speculation
    if not speculation.num_draft_tokens:
        return "no draft tokens"
    return f"{speculation.acceptance_rate:.0%} ({speculation.num_accepted_tokens} of {speculation.num_draft_tokens})"


def _mode(finished: Finished) -> str:
    mode = finished.mode.name.lower().replace("_", " ")
    return f"{mode}: {finished.mode_reason}" if finished.mode_reason else mode


def _ratio(row: _Row, other: _Row) -> str:
    return f"{row.number / other.number:.2f} x" if row.number is not None and other.number else ""
