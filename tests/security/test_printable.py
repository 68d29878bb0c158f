"""What models, peers and clients write has no power over the terminal that shows it."""

from __future__ import annotations

import io
import json
import logging
import sys

import grpc
import grpc.aio
import pytest
import structlog
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from rich.console import Console

from outrider.cli.explain import print_explanations
from outrider.cli.record import readable
from outrider.core.coordinate.explanation import Explanation
from outrider.core.protocol.errors import InvalidRequestError, ProtocolViolationError
from outrider.core.protocol.printable import printable, uncontrolled
from outrider.rpc.status import error_from
from outrider.telemetry.logging import set_up_logging

HOSTILE = "a\x1b]0;owned\x07b\x1b[2J\x9b31mc\x7f\r\u202egnp.exe\x00"


def is_tame(text: str) -> bool:
    """Whether nothing is left of HOSTILE that a terminal obeys."""
    return not {each for each in HOSTILE if not each.isprintable()} & set(text)


def test_control_characters_become_pictures_and_the_rest_stays() -> None:
    assert uncontrolled("Grüße, 世界 🙂\n\tx") == "Grüße, 世界 🙂\n\tx"
    assert is_tame(uncontrolled(HOSTILE))
    assert uncontrolled("\x1b[2J\r") == "␛[2J␍"
    assert printable("a\nb") == "a␊b"
    assert len(printable("x" * 10**6)) == 256


@pytest.mark.parametrize("line", [HOSTILE, json.dumps({"event": HOSTILE, "level": "info", "reason": HOSTILE})])
def test_a_services_log_is_tame_where_outrider_up_shows_it(line: str) -> None:
    assert is_tame(readable(line))
    assert "owned" in readable(line)


@pytest.mark.parametrize("json_lines", [False, True])
def test_a_log_is_tame_in_a_terminal_and_in_a_file(monkeypatch: pytest.MonkeyPatch, json_lines: bool) -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    try:
        set_up_logging("test", json=json_lines)
        structlog.get_logger().warning("lost", reason=HOSTILE, session=HOSTILE)
        logging.getLogger("library").warning("%s", HOSTILE)
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            structlog.get_logger().exception("failed")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()
    told = out.getvalue()
    assert told.count("owned") == 4
    without_colours = told if json_lines else "".join(part.partition("m")[2] for part in f"m{told}".split("\x1b["))
    assert is_tame(without_colours)


def test_an_explanation_is_tame() -> None:
    out = io.StringIO()
    print_explanations([Explanation(True, (HOSTILE,))], Console(file=out, force_terminal=True))
    assert is_tame(out.getvalue())
    assert "owned" in out.getvalue()


@pytest.mark.parametrize(
    ("reason", "kind"), [("PROTOCOL_VIOLATION", ProtocolViolationError), ("INVALID_REQUEST", InvalidRequestError)]
)
def test_a_peers_error_is_tame(reason: str, kind: type[Exception]) -> None:
    status = Status(code=3, message=HOSTILE)
    status.details.add().Pack(ErrorInfo(domain="outrider", reason=reason))
    status.details.add().Pack(
        BadRequest(field_violations=[BadRequest.FieldViolation(field=HOSTILE, description=HOSTILE)])
    )
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    found = error_from(grpc.aio.AioRpcError(grpc.StatusCode.INVALID_ARGUMENT, grpc.aio.Metadata(), trailers, HOSTILE))
    assert type(found) is kind
    assert is_tame(str(found))
    assert "owned" in str(found)
