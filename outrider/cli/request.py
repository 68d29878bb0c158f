"""What the user asks for, as the flags of `generate` and `run` say it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from outrider.core.protocol.options import GenerationOptions, Prompt


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and how to continue it."""

    prompt: Prompt
    options: GenerationOptions

    def but(self, **changes: Any) -> Self:
        """The same prompt with other options, by the names of their fields."""
        return replace(self, options=replace(self.options, **changes))

    def by_target_alone(self, seed: int) -> Self:
        """The same request without speculation, with the seed that was in force."""
        return self.but(speculate=False, draw_seed=False, sampling=replace(self.options.sampling, seed=seed))
