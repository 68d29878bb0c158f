"""A service's log record, read back for people: services log JSON lines where nobody watches their terminal."""

from __future__ import annotations

import json
import re
from typing import Any

from outrider.core.protocol.printable import uncontrolled

_UNTOLD = frozenset({"event", "level", "timestamp", "service", "logger", "exception"})
"""Keys that are not told as `key=value`: they have their own place, or the reader knows them."""


def readable(line: str) -> str:
    """A JSON record as `time level event key=value ...`, its traceback on lines of its own; other lines as they are.

    Whatever control characters somebody got into it are shown rather than obeyed.
    """
    try:
        record = json.loads(line)
    except ValueError:
        return uncontrolled(line)
    if not isinstance(record, dict) or "event" not in record:
        return uncontrolled(line)
    return uncontrolled(_told(record))  # pyright: ignore[reportUnknownArgumentType]


def is_warning(line: str) -> bool:
    """Whether a line that `readable` has made tells of a warning."""
    return re.match(r"(\d\d:\d\d:\d\d )?warning ", line) is not None


def _told(record: dict[str, Any]) -> str:
    clock = str(record.get("timestamp", ""))[11:19]
    details = [f"{key}={value}" for key, value in record.items() if key not in _UNTOLD]
    words = [clock, str(record.get("level", "")), str(record["event"]), *details]
    told = " ".join(word for word in words if word)
    return f"{told}\n{record['exception']}" if "exception" in record else told
