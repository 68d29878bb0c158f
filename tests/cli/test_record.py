"""Log records of services as `outrider up` shows them."""

from __future__ import annotations

import json

import pytest

from outrider.cli.record import readable


def test_a_json_record_is_told_in_words() -> None:
    record = {
        "folder": "target",
        "seconds": 1.5,
        "event": "model ready",
        "level": "info",
        "logger": "outrider",
        "timestamp": "2026-11-21T03:17:09.123456Z",
        "service": "verify",
    }
    assert readable(json.dumps(record)) == "03:17:09 info model ready folder=target seconds=1.5"


def test_a_traceback_stands_on_its_own_lines() -> None:
    assert readable('{"event": "failed", "level": "error", "exception": "Traceback:\\n  here"}').splitlines() == [
        "error failed",
        "Traceback:",
        "  here",
    ]


@pytest.mark.parametrize("line", ["plain words", "{broken", "[1, 2]", "17", '{"no": "record"}', ""])
def test_other_lines_stay_as_they_are(line: str) -> None:
    assert readable(line) == line
