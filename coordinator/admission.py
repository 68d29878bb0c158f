"""How many completions run at a time, and who is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from outrider.core.protocol.errors import QueueFullError


class Admission:
    """Counts the completions under way. Each counts until its request ends."""

    def __init__(self, num_max: int) -> None:
        self.num_running = 0
        self._num_max = num_max

    def require_room(self, num_completions: int) -> None:
        """Raises QueueFullError if so many more are too many at present."""
        if self.num_running + num_completions > self._num_max:
            raise QueueFullError(
                f"{self.num_running} completions are running and {self._num_max} the most allowed; try again later"
            )

    @contextmanager
    def admitted(self, num_completions: int) -> Iterator[None]:
        """Around a request. Raises QueueFullError if there is no room for all of its completions."""
        self.require_room(num_completions)
        self.num_running += num_completions
        try:
            yield
        finally:
            self.num_running -= num_completions
