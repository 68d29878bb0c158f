"""The page's files by HTTP: what is served, with which headers, and that it needs nobody else."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from coordinator.page.site import FOLDER, add_page

FILES = sorted(FOLDER.iterdir())
CONTENTS = {path: path.read_bytes() for path in FILES}
ROOT = Path(__file__).parents[2]
LINES_MAX = 300
CONTRAST_MIN = 4.5
"""WCAG's for text, level AA."""


@pytest.fixture
def site() -> httpx.AsyncClient:
    app = FastAPI()
    add_page(app)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://page")


def url_of(path: Path) -> str:
    return "/" if path.name == "index.html" else f"/page/{path.name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
async def test_a_file_is_served_as_what_it_is(site: httpx.AsyncClient, path: Path) -> None:
    answer = await site.get(url_of(path))
    assert (answer.status_code, answer.content) == (200, CONTENTS[path])
    kinds = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    assert answer.headers["content-type"].startswith(kinds[path.suffix])
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    again = await site.get(url_of(path), headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == answer.headers["content-security-policy"]
    changed = await site.get(url_of(path), headers={"if-none-match": '"another"'})
    assert changed.status_code == 200


@pytest.mark.parametrize(
    "url", ["/page", "/page/", "/page/index.html", "/page/site.py", "/page/../site.py", "/page/%2e%2e/site.py", "/x"]
)
async def test_there_are_no_other_paths(site: httpx.AsyncClient, url: str) -> None:
    assert (await site.get(url)).status_code == 404


async def test_nothing_can_be_sent(site: httpx.AsyncClient) -> None:
    assert (await site.post("/", content=b"x")).status_code == 405


def test_the_files_name_one_another_and_nobody_else() -> None:
    names = {path.name for path in FILES}
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= LINES_MAX, path.name
        assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg"}, path.name
        assert set(re.findall(r'from "\./([^"]+)"', text)) <= names
        assert set(re.findall(r'(?:href|src)="page/([^"]+)"', text)) <= names
        assert not re.search(r"\sstyle=|\son[a-z]+=|innerHTML|eval\(", text), f"{path.name}: the policy forbids it"


def test_every_file_is_used_and_packed() -> None:
    texts = "".join(path.read_text(encoding="utf-8") for path in FILES)
    for path in FILES:
        assert path.name == "index.html" or f"/{path.name}" in texts, path.name
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["coordinator"]
    found = {each for pattern in packed for each in (ROOT / "coordinator").glob(pattern)}
    assert set(FILES) <= found


def luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_every_ink_can_be_read_in_light_and_in_dark() -> None:
    inks = re.findall(r"--(\w+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);", (FOLDER / "style.css").read_text())
    themes = [{name: light for name, light, _ in inks}, {name: dark for name, _, dark in inks}]
    for theme in themes:
        for ink in ("ink", "soft", "accepted", "prompt_lookup", "recovered", "bonus", "target", "void"):
            for ground in ("paper", "sheet"):
                assert contrast(theme[ink], theme[ground]) >= CONTRAST_MIN, (ink, ground)
