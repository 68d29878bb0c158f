"""The pages of the documentation, as far as they can be checked: code, shell commands, tables, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
        *(ROOT / folder / "README.md" for folder in ("bench", "k8s", "models")),
    )
}
"""The documentation: the text of each page by its path in the repository."""

CURRENT = [page for page in PAGES if page != "CHANGELOG.md" and not page.startswith("docs/experiments/")]
"""Pages that tell what is so now. The others tell what was: what they name may be gone."""

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.M | re.S)
_CODE = re.compile(r"`([^`\n]+)`")
_HEREDOC = re.compile(r"<<'(\w+)'")


class Command(NamedTuple):
    """One command of a shell block."""

    words: list[str]
    document: str
    """What its here-document says, if it has one."""


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return _FENCED.sub("", page)


def spans(text: str) -> list[str]:
    """Inline code."""
    return _CODE.findall(prose(text))


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks of one language."""
    return [content for name, content in _FENCED.findall(page) if name == language]


def commands(page: str) -> Iterator[Command]:
    """Every command in a block of `sh`, and every span of inline code that has several words."""
    for block in blocks(page, "sh"):
        lines = iter(block.splitlines(keepends=True))
        for line in lines:
            while line.endswith("\\\n") or line.count("'") % 2:
                line = line.removesuffix("\\\n") + next(lines)
            heredoc = _HEREDOC.search(line)
            document = _until(f"{heredoc[1]}\n", lines) if heredoc else ""
            if words := shlex.split(line, comments=True):
                yield Command(words, document)
    yield from (Command(span.split(), "") for span in spans(page) if " " in span)


def own_commands(words: list[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """The commands of ours in a command line, such as "outrider up" or (after -m) "coordinator", with their flags."""
    for index, word in enumerate(words[:-1]):
        rest = words[index + 1 :]
        flags = frozenset(each.partition("=")[0] for each in rest if each.startswith("--"))
        if PurePosixPath(word).name == "outrider":
            yield f"outrider {rest[0]}", flags
        elif word == "-m":
            yield rest[0], flags


def rows(page: str, first_header: str) -> list[list[str]]:
    """The cells of the table whose first column is headed so, without the header."""
    table = page.partition(f"\n| {first_header} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def links(page: str) -> list[str]:
    """Where the page's links point, but for other sites."""
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in target]


def definitions(page: str) -> Iterator[tuple[str, str]]:
    """What the page says is defined where: "`Name.method` in `folder/file.py`"."""
    return iter(re.findall(r"`([A-Za-z_][\w.]*)`\s+in\s+\[?`([\w/]+\.py)`", prose(page)))


def anchors(page: str) -> set[str]:
    """What a link into the page may point at: its headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _until(end: str, lines: Iterator[str]) -> str:
    document = ""
    while (line := next(lines)) != end:
        document += line
    return document
