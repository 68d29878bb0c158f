"""The history of one answer: every message that its client got, and whether it keeps what was promised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class History:
    """What a client got, in order, from however many coordinators."""

    num_prompt_tokens: int
    times: list[float] = field(default_factory=list[float])
    """When each message came, by the monotonic clock."""
    committed: dict[int, int] = field(default_factory=dict[int, int])
    """Token by position."""
    text: str = ""
    is_finished: bool = False
    broken: list[str] = field(default_factory=list[str])
    """Promises that were not kept."""

    @property
    def end(self) -> int:
        """The position of the next token."""
        return self.num_prompt_tokens + len(self.committed)

    @property
    def token_ids(self) -> list[int]:
        """Those that came, in order of their positions."""
        return [self.committed[position] for position in sorted(self.committed)]

    def on_tokens(self, time: float, position: int, token_ids: Sequence[int], text: str) -> None:
        """A message with tokens came."""
        self.times.append(time)
        if self.is_finished:
            self.broken.append(f"tokens at {position} after the end")
        for at, token_id in enumerate(token_ids, position):
            if at in self.committed:
                known = self.committed[at]
                how = "came again" if known == token_id else f"changed from {known} to {token_id}"
                self.broken.append(f"the token at {at} {how}")
            elif at != self.end:
                self.broken.append(f"a token at {at}, where {self.end} was next")
            self.committed.setdefault(at, token_id)
        self.text += text

    def on_finished(self, time: float, text: str = "") -> None:
        """The last message came."""
        self.times.append(time)
        if self.is_finished:
            self.broken.append("a second end")
        self.is_finished = True
        self.text += text

    def against(self, undisturbed: History) -> list[str]:
        """Everything that is wrong with the history of an answer that came to its end."""
        found = list(self.broken)
        if not self.is_finished:
            found.append("no end")
        if self.token_ids != undisturbed.token_ids:
            pairs = enumerate(zip(self.token_ids, undisturbed.token_ids, strict=False))
            first = next((at for at, (here, there) in pairs if here != there), None)
            found.append(
                f"{len(self.committed)} tokens, undisturbed {len(undisturbed.committed)}; first difference at {first}"
            )
        if self.text != undisturbed.text:
            found.append("another text than undisturbed")
        return found

    def silence(self, start: float, end: float) -> float:
        """The longest time without a message that overlaps the time from `start` to `end`; 0 if the answer does not."""
        spans = zip(self.times, self.times[1:], strict=False)
        return max((later - sooner for sooner, later in spans if sooner < end and later > start), default=0.0)
