"""What pages say of results: made from the file that holds them, and checked against it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.columns import as_markdown
from bench.compare import hosts_result
from bench.compare.columns import QUOTED
from bench.compare.result import BENCHMARK, FORMAT, OURS, Result, drawn
from bench.gpu import result as gpu
from bench.load import cells
from bench.load import result as load
from bench.load.columns import ADVANTAGE, DELAY, INTER_TOKEN, TOKENS_PER_SECOND, across
from bench.load.tables import heading
from bench.records import from_json
from outrider.core.protocol.errors import OutriderError

_BLOCK = re.compile(r"^<!-- quoted from (.+?) -->\n(.*?)^<!-- end of quote -->$", flags=re.M | re.S)


class NotAResultError(OutriderError):
    """A file holds nothing that can be quoted."""


class Quote(NamedTuple):
    """A quotation as it stands on a page."""

    source: str
    """Path of the result, from the repository's root if it is in there."""
    text: str


def quote(path: Path, root: Path) -> str:
    """The tables of the result in `path` as Markdown, between the marks by which `quotes` finds them again.

    A file in `root` is named from there, any other as `path` has it. Raises NotAResultError for a file that is none.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotAResultError(f"{path} cannot be quoted: {error}") from error
    inside = path.resolve().is_relative_to(root.resolve())
    source = (path.resolve().relative_to(root.resolve()) if inside else path).as_posix()
    try:
        kind = (result["benchmark"], result["format"])
        if kind == (BENCHMARK, FORMAT):
            text = _tables(from_json(Result, result))
        elif kind == (load.BENCHMARK, load.FORMAT):
            text = _load_tables(from_json(load.Result, result))
        elif kind == (hosts_result.BENCHMARK, hosts_result.FORMAT):
            text = _hosts_tables(from_json(hosts_result.Result, result))
        elif kind == (cells.BENCHMARK, cells.FORMAT):
            text = _never_slower_table(from_json(cells.Result, result))
        elif kind == (gpu.BENCHMARK, gpu.FORMAT):
            text = _gpu_tables(from_json(gpu.Result, result))
        else:
            raise ValueError(kind)
    except (LookupError, TypeError, ValueError) as error:
        raise NotAResultError(
            f"{path} is no result of this version's `{BENCHMARK}`; measure again with --json {path}"
        ) from error
    return f"<!-- quoted from {source} -->\n{text}<!-- end of quote -->"


def quotes(page: str) -> Iterator[Quote]:
    """Every quotation on a page."""
    for source, text in _BLOCK.findall(page):
        yield Quote(source, text)


def misquoted(page: str, root: Path) -> list[str]:
    """Sources of those quotations on a page that are not what their files say."""
    return [each.source for each in quotes(page) if quote(root / each.source, root) not in page]


def _tables(result: Result) -> str:
    settings = result.settings
    text = (
        f"{settings['target']} and {settings['draft']}, {settings['dtype']}, {settings['num_prompts']} prompts, "
        f"{settings['max_tokens']} new tokens each; {_machine(result.machine)}:\n\n"
    )
    return (
        text
        + "".join(
            f"{as_markdown(drawn(at.temperature, at.delay_ms), QUOTED, result.best_modes(at))}\n"
            for at in result.results
        )
        + "".join(f"{each}\n\n" for each in (*result.without_drafter(), *result.likenesses(), *result.versions()))
    )


def _load_tables(result: load.Result) -> str:
    """A table for each temperature and kind of load: a row for each load, with the modes side by side."""
    return "".join(
        f"{heading(result.settings, shown[0].temperature)}; {_machine(result.machine)}:\n\n{_load_table(shown)}\n"
        for shown in result.kinds()
    )


def _never_slower_table(result: cells.Result) -> str:
    rows = [row for section in cells.sections(result) for row in section]
    table = as_markdown("", cells.columns(result), rows)
    return f"{cells.heading(result)}; {_machine(result.machine)}:\n\n{table}\n{cells.legend(result)}\n\n"


def _gpu_tables(result: gpu.Result) -> str:
    rows = [row for section in gpu.sections(result) for row in section]
    table = as_markdown("sessions x tokens, context", gpu.columns(result), rows)
    parts = as_markdown("part of a step", gpu.PIECE_COLUMNS, ((piece.name, piece) for piece in result.pieces))
    return f"{gpu.heading(result)}; {_machine(result.machine)}:\n\n{table}\n{parts}\n{gpu.legend(result)}\n\n"


def _load_table(shown: Sequence[load.AtLoad]) -> str:
    modes = list(shown[0].modes)
    columns = [
        *([DELAY] if any(at.delay_ms for at in shown) else []),
        *(across(TOKENS_PER_SECOND, name) for name in modes),
        *(across(ADVANTAGE, name) for name in modes if OURS in modes and name != OURS),
        *(across(INTER_TOKEN, name) for name in modes),
    ]
    corner = "clients" if shown[0].loop == "closed" else "requests/s"
    return as_markdown(corner, columns, ((_load(at), at) for at in shown))


def _hosts_tables(result: hosts_result.Result) -> str:
    settings = result.settings
    said = (
        f"{settings['target']} and {settings['draft']}, {settings['dtype']}, {settings['num_prompts']} prompts, "
        f"{settings['max_tokens']} new tokens each; messages held back by {result.held_back_by}; "
        f"{_machine(result.machine)}:\n\n"
    )
    return said + "".join(
        f"{hosts_result.title(at)}:\n\n{as_markdown('one way', hosts_result.columns(at), hosts_result.rows(at))}\n"
        for at in result.results
    )


def _load(at: load.AtLoad) -> str:
    return f"{at.load:g}{f' beside prompts of {at.long_prompt}' if at.long_prompt else ''}"


def _machine(machine: Mapping[str, Any]) -> str:
    load = f", a load of {machine['load_average']} before it" if "load_average" in machine else ""
    return f"{machine['cores']} cores of {machine['processor']}, torch {machine['torch']}{load}"
