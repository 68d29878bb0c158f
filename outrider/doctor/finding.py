"""One thing that was looked at."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Level(StrEnum):
    """What a finding means."""

    GOOD = "good"
    NOTE = "note"
    """Works, and could be better."""
    PROBLEM = "problem"
    """Does not work."""


class Finding(NamedTuple):
    """What was found, and what to do about it."""

    level: Level
    subject: str
    """What was looked at, in one or two words."""
    text: str
    advice: str = ""
    """What to change; empty if there is nothing."""
