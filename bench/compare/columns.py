"""The figures of a mode that tables, pages and plots show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.columns import Column, interval, number, share
from bench.compare.result import OURS, REFERENCE, Ratio, Summary


def _ratio(ratio: Ratio) -> str:
    return interval(ratio.ratio_of_sums, ratio.ratio_of_sums_95)


def _ratio_on_page(ratio: Ratio) -> str:
    return interval(ratio.ratio_of_sums, ratio.ratio_of_sums_95, " to ")


def _of(group: str, name: str) -> Callable[[Summary], Any]:
    """A field of `Summary.speculation` or `Summary.devices`, if there is the group."""
    return lambda each: getattr(getattr(each, group), name, None)


def _part(heading: str, name: str) -> Column[Summary]:
    """A part of a round's time, in ms."""
    return Column(heading, lambda each: each.devices and getattr(each.devices.round_ms, name), number(2))


def _hits(each: Summary) -> float | None:
    found = each.speculation
    return found.num_recovered_token_hits / found.num_rejections if found and found.num_rejections else None


def _num_undrafted(each: Summary) -> int:
    found = each.speculation
    return sum(found.undrafted.values()) if found and found.undrafted else 0


MS_PER_TOKEN = Column[Summary]("ms/token", lambda each: each.ms_per_token, number(2), "ms per token")
SPEED_UP = Column[Summary](
    f"x {REFERENCE}", lambda each: each.speed_up, _ratio, "times faster than the target alone", _ratio_on_page
)
ADVANTAGE = Column[Summary](
    f"{OURS} x", lambda each: each.advantage_of_ours, _ratio, f"{OURS} is faster by", _ratio_on_page
)
A_ROUND = Column[Summary]("a round", lambda each: each.acceptance_length, number(2))

QUOTED = (MS_PER_TOKEN, SPEED_UP, ADVANTAGE)

SPEED = (
    MS_PER_TOKEN,
    Column[Summary]("decoding", lambda each: each.decode_ms_per_token, number(2)),
    Column[Summary]("first", lambda each: each.first_token_ms, number(1)),
    SPEED_UP,
    ADVANTAGE,
    Column[Summary]("roofline", lambda each: each.roofline and each.roofline.share_reached, share),
    Column[Summary]("same", lambda each: each.identity and f"{each.identity.num_identical}/{each.num_answers}"),
)

SPECULATION = (
    A_ROUND,
    Column[Summary](
        "depth 1, 2, ..",
        _of("speculation", "accepted_at_depth"),
        lambda shares: " ".join(f"{each:.2f}".lstrip("0") for each in shares[:4]),
    ),
    Column[Summary]("right", _of("speculation", "acceptance"), number(2)),
    Column[Summary]("drafted", _of("speculation", "num_drafted_nodes")),
    Column[Summary]("scored", _of("speculation", "num_draft_tokens")),
    Column[Summary]("accepted", _of("speculation", "num_accepted_tokens")),
    Column[Summary]("stale", _of("speculation", "num_stale_nodes")),
    Column[Summary]("wasted", _of("speculation", "num_wasted_nodes")),
    Column[Summary]("hits", _hits, share),
    Column[Summary]("alone", lambda each: _num_undrafted(each) or None),
)

TIME = (
    _part("verify", "verify"),
    _part("own", "verifier_outside"),
    _part("idle", "verifier_idle"),
    _part("in/out", "edges"),
    _part("draft", "drafting"),
    _part("own", "drafter_outside"),
    Column[Summary]("verify step", _of("devices", "verify_step_ms"), number(2)),
    Column[Summary]("draft step", _of("devices", "draft_step_ms"), number(2)),
    Column[Summary]("own/step", _of("devices", "draft_outside_ms_per_step"), number(2)),
    Column[Summary]("overlap", _of("devices", "overlap"), share),
)
"""Of modes whose workers keep a log."""
