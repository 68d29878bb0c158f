"""Retry: how long a client goes on after a coordinator was lost or had no room, and how it paces that."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

TRIES_TO_BEGIN = 3
"""Tries at each coordinator before an answer has begun: who misspelled an address learns that within a second."""

TRIES_MAX = 100
"""Most failures that one answer survives: a line that kills whoever continues it must not do so for ever."""

SECONDS_MAX = 60.0
"""Most time, after an answer has begun, without a coordinator that continues it: a restart takes some ten seconds."""

PAUSE_SECONDS = 0.1
"""Pause after the first failure of a coordinator. It doubles with each further one."""

PAUSE_SECONDS_MAX = 2.0
"""Longest such pause: as long as a coordinator that has come back stays unnoticed."""

RETRY_AFTER_SECONDS_MAX = 60.0
"""Longest pause that a coordinator may ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When a client gives up."""

    tries_to_begin: int = TRIES_TO_BEGIN
    """At each coordinator, as long as the answer has not begun."""
    tries_max: int = TRIES_MAX
    """Of one answer, from its beginning on."""
    seconds_max: float = SECONDS_MAX
    """Without anything new of an answer that has begun."""
    pause_seconds: float = PAUSE_SECONDS

    def pause(self, num_failures: int, asked_seconds: float) -> float:
        """Seconds for which a coordinator is left alone after so many failures in a row. It may have asked for more.

        Half of it is chance, so that the clients of a lost coordinator do not come back all at once.
        """
        longest = min(self.pause_seconds * 2 ** min(num_failures - 1, 16), PAUSE_SECONDS_MAX)
        return min(asked_seconds, RETRY_AFTER_SECONDS_MAX) + longest * random.uniform(0.5, 1.0)


DEFAULT_RETRY: Final = Retry()

NO_RETRY: Final = Retry(tries_to_begin=1, tries_max=0)
"""Every failure is raised as it comes."""


class Patience:
    """What is left of it for one answer. All times are in seconds, by any clock that only rises."""

    def __init__(self, retry: Retry, num_coordinators: int) -> None:
        self._retry = retry
        self._num_tries_to_begin = retry.tries_to_begin * num_coordinators
        self._num_failures = 0
        self._has_begun = False
        self._failing_since: float | None = None

    def on_event(self) -> None:
        """The answer has begun, or goes on."""
        if not self._has_begun:
            self._has_begun, self._num_failures = True, 0
        self._failing_since = None

    def lasts(self, now: float) -> bool:
        """Whether to try again after another failure."""
        self._num_failures += 1
        if not self._has_begun:
            return self._num_failures < self._num_tries_to_begin
        if self._failing_since is None:
            self._failing_since = now
        return self._num_failures <= self._retry.tries_max and now - self._failing_since < self._retry.seconds_max
