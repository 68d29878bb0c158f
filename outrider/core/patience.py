"""Wait for drafts, or verify what is there? Decided by expected tokens per unit of time."""

from __future__ import annotations

_SMOOTHING = 0.2
"""Weight of the newest observation in the running means: the last five rounds or so decide, since a text's
predictability changes from one line to the next."""

_LOOKAHEAD_MAX = 8
"""Most further drafts that a wait may aim at. At an acceptance of 0.8 the ninth draft adds 0.13 tokens to a step."""

_OVERDUE = 2.0
"""A draft that takes this many times its expected time is not waited for any longer: the estimate has proved wrong."""


class Patience:
    """One session's running estimates and the wait that follows from them.

    With n drafts at hand a verify step of duration t commits E(n) = 1 + a + ... + a^n tokens, a being the acceptance
    per draft token (Leviathan, Kalman, Matias, arXiv 2211.17192, equation 1). Waiting w for k more is worth it while
    E(n + k) / (w + t) > E(n) / t. No wait is longer than one verify step, in which the target alone makes one token.
    All times are in seconds.
    """

    __slots__ = ("_acceptance", "_draft_step", "_first_draft", "_verify_step")

    def __init__(self) -> None:
        self._acceptance = 0.5
        self._verify_step = 0.0
        self._draft_step = 0.0
        self._first_draft = 0.0

    def observe_round(self, num_accepted: int, rejected: bool, verify_step: float) -> None:
        """A verify step of `verify_step` seconds accepted `num_accepted` draft tokens and then, maybe, rejected one."""
        self._verify_step = _smoothed(self._verify_step, verify_step)
        for _ in range(num_accepted):
            self.observe_guess(True)
        if rejected:
            self.observe_guess(False)

    def observe_guess(self, right: bool) -> None:
        """A guess for a place that was then decided was right or wrong, be it scored in time or not."""
        self._acceptance += _SMOOTHING / 2 * (right - self._acceptance)

    def observe_window(self, num_levels: int, draft_time: float) -> None:
        """The drafter spent `draft_time` seconds on a window that is `num_levels` draft steps deep."""
        self._draft_step = _smoothed(self._draft_step, draft_time / num_levels)

    def observe_first_draft(self, elapsed: float) -> None:
        """After a verdict that left no drafts, the first usable one came `elapsed` seconds later."""
        self._first_draft = _smoothed(self._first_draft, elapsed)

    def observe_no_draft(self, elapsed: float) -> None:
        """A wait for the first draft ended after `elapsed` seconds without one, which counts as twice as long."""
        self.observe_first_draft(2.0 * elapsed)

    def wait(self, num_ready: int, num_room: int, elapsed: float) -> float:
        """How much longer to wait, `elapsed` seconds after the last verdict, with drafts `num_ready` deep at hand.

        The step has room for `num_room` more. 0 means: go now. Otherwise ask again when a draft arrives, and go when
        none has arrived in that time.
        """
        step = self._verify_step
        if elapsed >= step:
            return 0.0
        if num_ready:
            until_next = self._draft_step
        else:
            until_next = max((self._first_draft or self._draft_step or step / 2) - elapsed, 0.0)
        best_rate = _expected_tokens(self._acceptance, num_ready) / step
        best_wait = 0.0
        for num_more in range(1, min(num_room, _LOOKAHEAD_MAX) + 1):
            wait = until_next + (num_more - 1) * self._draft_step
            rate = _expected_tokens(self._acceptance, num_ready + num_more) / (wait + step)
            if rate > best_rate:
                best_rate, best_wait = rate, wait
        return min(_OVERDUE * best_wait, step - elapsed)


def _expected_tokens(acceptance: float, num_draft_tokens: int) -> float:
    return sum(acceptance**depth for depth in range(num_draft_tokens + 1))


def _smoothed(mean: float, value: float) -> float:
    return value if mean == 0.0 else mean + _SMOOTHING * (value - mean)
