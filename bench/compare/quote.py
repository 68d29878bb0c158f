"""What pages say of results: made from the file that holds them, and checked against it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.compare.report import BENCHMARK, FORMAT, OURS, best_modes
from bench.load import report as load_report
from bench.load.tables import heading, ratio
from outrider.core.protocol.errors import OutriderError

_BLOCK = re.compile(r"^<!-- quoted from (\S+) -->\n(.*?)^<!-- end of quote -->$", flags=re.M | re.S)


class NotAResultError(OutriderError):
    """A file holds nothing that can be quoted."""


class Quote(NamedTuple):
    """A quotation as it stands on a page."""

    source: str
    """Path of the result, from the repository's root."""
    text: str


def quote(path: Path, root: Path) -> str:
    """The tables of the result in `path` as Markdown, between the marks by which `quotes` finds them again.

    Raises NotAResultError for a file that is none, or that is outside of `root`.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        source = path.resolve().relative_to(root.resolve()).as_posix()
    except (OSError, ValueError) as error:
        raise NotAResultError(f"{path} cannot be quoted from {root}: {error}") from error
    kind = (result.get("benchmark"), result.get("format")) if isinstance(result, dict) else None
    if kind == (BENCHMARK, FORMAT):
        text = _tables(result)
    elif kind == (load_report.BENCHMARK, load_report.FORMAT):
        text = _load_tables(result)
    else:
        raise NotAResultError(f"{path} is no result of this version's `{BENCHMARK}`; measure again with --json {path}")
    return f"<!-- quoted from {source} -->\n{text}<!-- end of quote -->"


def quotes(page: str) -> Iterator[Quote]:
    """Every quotation on a page."""
    for source, text in _BLOCK.findall(page):
        yield Quote(source, text)


def misquoted(page: str, root: Path) -> list[str]:
    """Sources of those quotations on a page that are not what their files say."""
    return [each.source for each in quotes(page) if quote(root / each.source, root) not in page]


def _tables(result: Mapping[str, Any]) -> str:
    settings = result["settings"]
    text = (
        f"{settings['target']} and {settings['draft']}, {settings['dtype']}, {settings['num_prompts']} prompts, "
        f"{settings['max_tokens']} new tokens each; {_machine(result)}:\n\n"
    )
    for at in result["results"]:
        drawn = "greedy" if at["temperature"] == 0 else f"temperature {at['temperature']:g}"
        text += f"| {drawn} | ms per token | times faster than the target alone | outrider is faster by |\n"
        text += "|---|---|---|---|\n"
        for name, title in best_modes(result, at):
            each = at["modes"][name]
            text += (
                f"| {title} | {each['ms_per_token']:.2f} | {_ratio(each['speed_up'])} "
                f"| {_ratio(each.get('advantage_of_ours'))} |\n"
            )
        text += "\n"
    return text


def _load_tables(result: Mapping[str, Any]) -> str:
    """A table for each temperature and kind of load: a row for each load, with the modes side by side."""
    text = ""
    for temperature in dict.fromkeys(at["temperature"] for at in result["results"]):
        for loop, load in (("closed", "clients"), ("open", "requests/s")):
            shown = [at for at in result["results"] if (at["temperature"], at["loop"]) == (temperature, loop)]
            if shown:
                text += f"{heading(result['settings'], shown[0])}; {_machine(result)}:\n\n{_load_table(load, shown)}\n"
    return text


def _load_table(load: str, results: Sequence[Mapping[str, Any]]) -> str:
    modes = list(results[0]["modes"])
    others = [name for name in modes if name != OURS] if OURS in modes else []
    headings = [
        load,
        *(f"{name}, tokens/s" for name in modes),
        *(f"{OURS} / {name}" for name in others),
        *(f"{name}, ms between tokens p50 / p99" for name in modes),
    ]
    text = f"| {' | '.join(headings)} |\n|{'---|' * len(headings)}\n"
    for at in results:
        each = at["modes"]
        cells = [
            _load(at),
            *(f"{each[name]['tokens_per_second']:.0f}" for name in modes),
            *(ratio(each[name]["advantage_of_ours"]) for name in others),
            *(_percentiles(each[name]["inter_token_ms"]) for name in modes),
        ]
        text += f"| {' | '.join(cells)} |\n"
    return text


def _load(at: Mapping[str, Any]) -> str:
    beside = f" beside prompts of {at['long_prompt']}" if at.get("long_prompt") else ""
    return f"{at['load']:g}{beside}"


def _percentiles(found: Mapping[str, float] | None) -> str:
    return f"{found['p50']:.1f} / {found['p99']:.1f}" if found else ""


def _machine(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    return f"{machine['cores']} cores of {machine['processor']}, torch {machine['torch']}"


def _ratio(comparison: Mapping[str, Any] | None) -> str:
    if not comparison:
        return ""
    low, high = comparison["ratio_of_sums_95"]
    return f"{comparison['ratio_of_sums']:.2f} ({low:.2f} to {high:.2f})"
