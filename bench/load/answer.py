"""One answer under load: what came, when, and whether that was soon enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.load.client import Recording
from bench.load.objective import Objective
from outrider.core.protocol.errors import OutriderError
from outrider.v1 import generation_pb2


class Group(NamedTuple):
    """Tokens that arrived together: those of one round."""

    arrived: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the client's clock and the answer's own statistics say. Times are of the system-wide monotonic clock."""

    sent: float
    ended: float
    """When the last tokens arrived; for a failed answer when it failed."""
    groups: Sequence[Group]
    token_ids: Sequence[int]
    num_rounds: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_cached_prompt_tokens: int
    degraded: bool
    """Whether its drafter was lost on the way."""
    undrafted: bool
    """Whether no drafter guessed for any of it though one was wanted."""
    error: OutriderError | None

    @property
    def complete(self) -> bool:
        """Whether it came to its end."""
        return self.error is None

    @property
    def num_tokens(self) -> int:
        """Generated tokens."""
        return len(self.token_ids)

    @property
    def total_ms(self) -> float:
        """From the request to the last tokens."""
        return (self.ended - self.sent) * 1000.0

    @property
    def first_token_ms(self) -> float:
        """From the request to the first tokens (TTFT). Only of an answer with tokens."""
        return (self.groups[0].arrived - self.sent) * 1000.0

    @property
    def mean_inter_token_ms(self) -> float:
        """Time from the first group to the last for each token after the first group; 0 if no other group came."""
        num_later = self.num_tokens - self.groups[0].num_tokens
        return (self.groups[-1].arrived - self.groups[0].arrived) * 1000.0 / num_later if num_later else 0.0

    @property
    def max_gap_ms(self) -> float:
        """The longest time between two groups: the longest that a reader saw nothing new. 0 without a second group."""
        return max((gap_ms for gap_ms, _ in self._gaps()), default=0.0)

    def inter_token_ms(self) -> Iterator[tuple[float, int]]:
        """Times between tokens (ITL), each with how many tokens it is the time of.

        Tokens of one round arrive together. The time since the round before is divided among them, so each of n tokens
        that came g milliseconds after their predecessors has g / n. The first group has no time between tokens.
        """
        for gap_ms, num_tokens in self._gaps():
            yield gap_ms / num_tokens, num_tokens

    def keeps(self, objective: Objective) -> bool:
        """Whether it is complete and was soon enough."""
        return (
            self.complete
            and self.first_token_ms <= objective.first_token_ms
            and self.mean_inter_token_ms <= objective.inter_token_ms
        )

    def _gaps(self) -> Iterator[tuple[float, int]]:
        for i in range(1, len(self.groups)):
            yield (self.groups[i].arrived - self.groups[i - 1].arrived) * 1000.0, self.groups[i].num_tokens


def read(recording: Recording) -> Answer:
    """The answer in a recording."""
    groups: list[Group] = []
    token_ids: list[int] = []
    finished = generation_pb2.GenerateFinished()
    for arrived, content in zip(recording.arrivals, recording.messages, strict=True):
        message = generation_pb2.GenerateResponse.FromString(content)
        if message.HasField("finished"):
            finished = message.finished
        elif message.tokens.tokens:
            groups.append(Group(arrived, len(message.tokens.tokens)))
            token_ids.extend(token.token_id for token in message.tokens.tokens)
    speculation = finished.speculation
    return Answer(
        sent=recording.sent,
        ended=groups[-1].arrived if groups and recording.error is None else recording.ended,
        groups=groups,
        token_ids=token_ids,
        num_rounds=speculation.num_rounds,
        num_draft_tokens=speculation.num_draft_tokens,
        num_accepted_tokens=speculation.num_accepted_tokens,
        num_cached_prompt_tokens=finished.usage.num_cached_prompt_tokens,
        undrafted=finished.mode == generation_pb2.GENERATION_MODE_TARGET_ONLY and bool(finished.mode_reason),
        degraded=finished.mode == generation_pb2.GENERATION_MODE_DEGRADED,
        error=recording.error,
    )
