"""The figures of a mode under load that tables and pages show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from bench.columns import Column, interval, number, share
from bench.compare.result import OURS, REFERENCE
from bench.load.result import AtLoad, Percentiles, Ratio, Stall, Summary


def _ratio(ratio: Ratio) -> str:
    return interval(ratio.ratio, ratio.ratio_95)


def _of(group: str, name: str) -> Callable[[Summary], Any]:
    """A field of `Summary.steps` or `Summary.room`, if there is the group."""
    return lambda each: getattr(getattr(each, group), name, None)


def _percentiles(name: str, heading: str, digits: int) -> list[Column[Summary]]:
    """Three columns of the distribution in the field `name`, of which the first says whose they are."""

    def get(share: str) -> Callable[[Summary], float | None]:
        return lambda each: getattr(getattr(each, name), share, None)

    headings = {"p50": f"{heading} p50", "p90": "p90", "p99": "p99"}
    return [Column(heading, get(share), number(digits)) for share, heading in headings.items()]


def _median_and_tail(found: Percentiles) -> str:
    return f"{found.p50:.1f} / {found.p99:.1f}"


def across(column: Column[Summary], mode: str) -> Column[AtLoad]:
    """A mode's figure where a row is a load with all its modes; the title has a place for the mode's name."""
    return Column(
        "",
        lambda at: column.get(at.modes[mode]),
        column.on_page or column.show,
        column.title.format(mode=mode),
    )


DELAY = Column[AtLoad]("", lambda at: at.delay_ms, "{:g}".format, "ms that messages are late")
TOKENS_PER_SECOND = Column[Summary](
    "tokens/s", lambda each: each.tokens_per_second, number(1), "{mode}, tokens/s", number(0)
)
ADVANTAGE = Column[Summary](f"{OURS} x", lambda each: each.advantage_of_ours, _ratio, f"{OURS} / {{mode}}")
INTER_TOKEN = Column[Summary](
    "between", lambda each: each.inter_token_ms, _median_and_tail, "{mode}, ms between tokens p50 / p99"
)

SPEED = (
    TOKENS_PER_SECOND,
    Column[Summary](f"x {REFERENCE}", lambda each: each.speed_up, _ratio),
    ADVANTAGE,
    Column[Summary]("good", lambda each: each.goodput, share),
    Column[Summary]("refused", lambda each: each.num_refused or None),
    Column[Summary]("alone", lambda each: each.num_undrafted or None),
    Column[Summary]("same", lambda each: f"{each.num_identical}/{each.num_answers}"),
)

TIMES = (
    *_percentiles("first_token_ms", "first", 0),
    *_percentiles("inter_token_ms", "between", 1),
    *_percentiles("max_gap_ms", "gap", 0),
)

STEPS = (
    Column[Summary]("a round", lambda each: each.acceptance_length, number(2)),
    Column[Summary]("sessions", _of("steps", "sessions_per_step"), number(1)),
    Column[Summary]("tokens", _of("steps", "tokens_per_step"), number(1)),
    Column[Summary]("padding", _of("steps", "padding_per_step"), number(1)),
    Column[Summary]("step ms", _of("steps", "step_ms"), number(2)),
    Column[Summary]("busy", _of("steps", "busy"), share),
    Column[Summary]("room", _of("room", "kv_use"), share),
    Column[Summary]("most", _of("room", "kv_use_max"), share),
    Column[Summary]("queue", lambda each: (each.room and each.room.num_queued_max) or None),
    Column[Summary]("cached", lambda each: each.num_cached_prompt_tokens or None),
)


class Stalled(NamedTuple):
    """A mode beside long prompts, and under the same load without them."""

    beside: Summary
    quiet: Summary


def _stall(stall: Stall) -> str:
    return interval(stall.ratio, stall.ratio_range)


STALLS = (
    Column[Stalled]("p50", lambda each: each.beside.inter_token_ms and each.beside.inter_token_ms.p50, number(1)),
    Column[Stalled]("p99", lambda each: each.beside.inter_token_ms and each.beside.inter_token_ms.p99, number(1)),
    Column[Stalled]("p99 without", lambda each: each.quiet.inter_token_ms and each.quiet.inter_token_ms.p99, number(1)),
    Column[Stalled]("x without", lambda each: each.beside.stall, _stall),
    Column[Stalled](
        "long ones read", lambda each: each.beside.long_prompts and each.beside.long_prompts.num_long_answers
    ),
    Column[Stalled](
        "their first token p50",
        lambda each: (
            each.beside.long_prompts
            and each.beside.long_prompts.long_first_token_ms
            and each.beside.long_prompts.long_first_token_ms.p50
        ),
        number(0),
    ),
)
