"""What the user asks for, as the flags of `generate` and `run` say it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from outrider.client import Event, GenerationClient, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, ready to be sent to any server. What is None is the server's to choose."""

    prompt: str | Sequence[int]
    sampling: SamplingParams
    draw_seed: bool
    """Whether the server chooses the seed in place of `sampling.seed`."""
    max_tokens: int | None
    stop: Sequence[str]
    ignore_eos: bool
    num_logprobs: int | None
    target_only: bool
    max_draft_tokens: int | None
    tree_width: int | None
    num_completions: int | None

    def send(self, client: GenerationClient) -> AsyncGenerator[Event, None]:
        """Starts the generation. See `GenerationClient.generate`."""
        return client.generate(
            self.prompt,
            sampling=self.sampling,
            draw_seed=self.draw_seed,
            max_tokens=self.max_tokens,
            stop=self.stop,
            ignore_eos=self.ignore_eos,
            num_logprobs=self.num_logprobs,
            speculate=not self.target_only,
            max_draft_tokens=self.max_draft_tokens,
            tree_width=self.tree_width,
            num_completions=self.num_completions,
        )

    def by_target_alone(self, seed: int) -> Self:
        """The same request without speculation, with the seed that was in force."""
        return replace(self, target_only=True, draw_seed=False, sampling=replace(self.sampling, seed=seed))
