"""Log lines as they arrive on stderr."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from outrider.telemetry.logging import CONTENT_KEYS, set_up_logging


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_own_and_library_records_are_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("verifier", json=True)
    structlog.contextvars.bind_contextvars(session_id="s1")
    structlog.get_logger("outrider.verifier").info("session opened", num_prompt_tokens=7)
    logging.getLogger("grpc").warning("%d connections lost", 2)
    logging.getLogger("grpc").debug("not shown")
    own, library = lines(capsys)
    assert (own["event"], own["service"], own["session_id"]) == ("session opened", "verifier", "s1")
    assert (own["num_prompt_tokens"], own["level"], own["logger"]) == (7, "info", "outrider.verifier")
    assert (library["event"], library["service"], library["level"]) == ("2 connections lost", "verifier", "warning")
    assert {"timestamp"} <= own.keys() & library.keys()


@pytest.mark.parametrize("as_json", [True, False])
def test_a_users_words_are_not_logged(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    set_up_logging("coordinator", json=as_json)
    words = dict.fromkeys(CONTENT_KEYS, "my secret diary")
    structlog.get_logger().info("request", **words)
    logging.getLogger("library").info("request", extra=words)
    written = capsys.readouterr().err
    assert written.count("[not logged]") == 2 * len(CONTENT_KEYS)
    assert "diary" not in written


@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_shows_no_local_variables(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    set_up_logging("coordinator", json=as_json)

    def fail(text: str) -> None:
        raise ValueError("cannot go on")

    try:
        fail(" ".join(["my", "secret", "diary"]))
    except ValueError:
        structlog.get_logger().exception("request failed")
        logging.getLogger("library").exception("request failed")
    written = capsys.readouterr().err
    assert written.count("ValueError: cannot go on") == 2
    assert "my secret diary" not in written


def test_people_get_colours(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("coordinator", json=False)
    structlog.get_logger().info("ready")
    assert "\x1b[" in capsys.readouterr().err
