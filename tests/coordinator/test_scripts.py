"""Generations over links in memory: each script gives what stands in it. See `script.py`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from .script import SCRIPTS, play, read, written


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_script_gives_what_it_says(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert written(asyncio.run(play(read(text)))) == text


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 10
