"""Logs on stderr, JSON lines for machines and colours for people: our own records and those of the libraries."""

from __future__ import annotations

import logging
import sys
from typing import Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from outrider.core.protocol.printable import uncontrolled

CONTENT_KEYS: Final = frozenset(
    {"prompt", "text", "stop", "token_ids", "prompt_token_ids", "stop_token_ids", "messages"}
)
"""Keys whose values are a user's words. They are never written, whoever logs them."""


def set_up_logging(service_name: str, json: bool) -> None:
    """Makes structlog and the standard library log to stderr from INFO up, replacing earlier handlers.

    `json`: one JSON object per line, else coloured text; a service asks for it when stderr is not a terminal. Each
    record carries the service's name and what `structlog.contextvars.bind_contextvars` has bound, such as a session's.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _service(service_name),
        _without_content,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    # Plain tracebacks in both: structlog's richer ones print local variables, and prompts with them.
    rendering: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if json
        else [
            structlog.processors.format_exc_info,
            _uncontrolled,  # JSON has them escaped
            structlog.dev.ConsoleRenderer(colors=True, exception_formatter=structlog.dev.plain_traceback),
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)


def set_up_logging_beside(service_name: str) -> None:
    """Makes structlog alone log to stderr, as plain text: the standard library's logging is another program's, which
    we are only a guest of."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _service(service_name),
            _without_content,
            structlog.processors.format_exc_info,
            _uncontrolled,
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _service(name: str) -> Processor:
    def add_service(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["service"] = name
        return event

    return add_service


def _uncontrolled(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """What a model, a peer or a client wrote is shown in the terminal, and not obeyed."""
    return {key: uncontrolled(value) if isinstance(value, str) else value for key, value in event.items()}


def _without_content(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for key in CONTENT_KEYS & event.keys():
        event[key] = "[not logged]"
    return event
