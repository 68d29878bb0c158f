"""What pages say of results: made from the file that holds them, and checked against it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.report import BENCHMARK, FORMAT, best_modes
from outrider.core.errors import OutriderError

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
    if not isinstance(result, dict) or (result.get("benchmark"), result.get("format")) != (BENCHMARK, FORMAT):
        raise NotAResultError(f"{path} is no result of this version's `{BENCHMARK}`; measure again with --json {path}")
    return f"<!-- quoted from {source} -->\n{_tables(result)}<!-- end of quote -->"


def quotes(page: str) -> Iterator[Quote]:
    """Every quotation on a page."""
    for source, text in _BLOCK.findall(page):
        yield Quote(source, text)


def misquoted(page: str, root: Path) -> list[str]:
    """Sources of those quotations on a page that are not what their files say."""
    return [each.source for each in quotes(page) if quote(root / each.source, root) not in page]


def _tables(result: Mapping[str, Any]) -> str:
    settings, machine = result["settings"], result["machine"]
    text = (
        f"{settings['target']} and {settings['draft']}, {settings['dtype']}, {settings['num_prompts']} prompts, "
        f"{settings['max_tokens']} new tokens each; {machine['cores']} cores of {machine['processor']}, "
        f"torch {machine['torch']}:\n\n"
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


def _ratio(comparison: Mapping[str, Any] | None) -> str:
    if not comparison:
        return ""
    low, high = comparison["ratio_of_sums_95"]
    return f"{comparison['ratio_of_sums']:.2f} ({low:.2f} to {high:.2f})"
