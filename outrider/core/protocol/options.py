"""What a caller may ask of a generation: one set of options for client, command line and coordinator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypedDict

from outrider.core.protocol.resume import Resume
from outrider.core.protocol.sampling import SamplingParams

Prompt = str | Sequence[int]
"""What to continue: a text, or token ids that are taken as they are."""

GREEDY: Final = SamplingParams()
"""Always the most likely token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How to continue a prompt. None leaves a choice to the coordinator, which alone checks all bounds.

    The fields are those of `GenerateRequest` in generation.proto.
    """

    add_special_tokens: bool = True
    """Whether a prompt that is a text gets the special tokens of the target's tokenizer, such as a BOS in front. The
    text of a chat template has them already."""
    sampling: SamplingParams = GREEDY
    draw_seed: bool = False
    """Whether the coordinator chooses the seed in place of `sampling.seed`; `Started` names it."""
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    """Strings that end the text; it ends before them."""
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    num_logprobs: int | None = None
    """Asks for each token's log-probability and those of as many alternatives."""
    speculate: bool = True
    """False runs the target alone, which gives the same tokens."""
    max_draft_tokens: int | None = None
    tree_width: int | None = None
    prediction: str = ""
    """What the output will mostly be; the verifier takes its guesses from it as long as they are right."""
    report_rounds: bool = False
    """Whether to be told of each round what became of the guesses."""
    num_completions: int | None = None
    """Asks for several continuations at the same time, each with a seed of its own."""
    resume: Resume | None = None
    """Continues an answer whose coordinator was lost: the prompt is `Started.prompt_token_ids` then, and the seed
    `Started.seed`."""


DEFAULT_OPTIONS: Final = GenerationOptions()


class OptionFields(TypedDict, total=False):
    """The fields of `GenerationOptions` as keyword arguments; a test proves that they are the same."""

    add_special_tokens: bool
    sampling: SamplingParams
    draw_seed: bool
    max_tokens: int | None
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    num_logprobs: int | None
    speculate: bool
    max_draft_tokens: int | None
    tree_width: int | None
    prediction: str
    report_rounds: bool
    num_completions: int | None
    resume: Resume | None
