"""A generation request with its prompt as token ids and every default and bound settled."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from coordinator.config import CoordinatorConfig
from coordinator.resumption import check_resume, require_same_target
from coordinator.tokenizer import TargetTokenizer
from outrider.core.protocol.errors import FieldViolation, InvalidRequestError
from outrider.core.protocol.messages import ModelInfo
from outrider.core.protocol.options import GenerationOptions, Prompt
from outrider.core.protocol.resume import NOTHING_RECEIVED, ReceivedCompletion
from outrider.core.protocol.sampling import SamplingParams, completion_seed
from outrider.core.protocol.validation import (
    COMPLETIONS_MAX,
    DRAFT_TOKENS_MAX,
    TREE_WIDTH_MAX,
    UINT32_MAX,
    Violations,
    check_line,
    check_num_logprobs,
    check_prediction,
    check_sampling,
    check_stop,
    check_stop_token_ids,
)

MAX_TOKENS_DEFAULT = 256
"""Tokens generated when a request does not say how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to continue, and how."""

    prompt_token_ids: Sequence[int]
    sampling: SamplingParams
    max_length: int
    """Prompt and output together."""
    stop: Sequence[str]
    stop_token_ids: frozenset[int]
    ignore_eos: bool
    num_logprobs: int | None
    speculate: bool
    max_draft_tokens: int
    tree_width: int
    prediction_token_ids: Sequence[int] = ()
    """What is expected to follow the prompt."""
    num_completions: int
    cache_salt: str = ""
    """See `VerifyOpen.cache_salt`."""
    received: Sequence[ReceivedCompletion] = (NOTHING_RECEIVED,)
    """What the client has of each completion already."""

    @property
    def unfinished(self) -> Sequence[int]:
        """Numbers of the completions that are still to be brought to their end."""
        return [number for number, each in enumerate(self.received) if not each.finished]

    def completion(self, index: int) -> Self:
        """The request for completion number `index` alone."""
        sampling = replace(self.sampling, seed=completion_seed(self.sampling.seed, index))
        return replace(self, sampling=sampling, num_completions=1, received=(self.received[index],))


async def settle(
    prompt: Prompt,
    options: GenerationOptions,
    config: CoordinatorConfig,
    target: ModelInfo,
    tokenizer: TargetTokenizer,
    longest_answer: int | None = None,
) -> GenerationRequest:
    """Checks and completes a request, whose caller may have an answer of `longest_answer` tokens; None: of any length.

    Raises InvalidRequestError for what is wrong with it, QueueFullError if too much text waits to be tokenized.
    """
    if options.resume is not None:
        require_same_target(options.resume, target)
    if isinstance(prompt, str):
        if not prompt:
            raise InvalidRequestError([FieldViolation("text", "must not be empty")])
        resume = options.resume  # a text, or a template that asks for the date, may read otherwise by now
        if resume is not None and not resume.compares_prompt:
            raise InvalidRequestError([FieldViolation("resume", "needs the prompt as token_ids: those of `started`")])
        token_ids = await tokenizer.encode(
            prompt, add_special_tokens=options.add_special_tokens, num_tokens_max=target.max_context - 1
        )
        request = settle_token_ids(token_ids, options, config, target, "text", longest_answer)
    else:
        request = settle_token_ids(prompt, options, config, target, longest_answer=longest_answer)
    if not options.prediction:
        return request
    found, field = Violations(), "speculation.prediction"
    prediction = await tokenizer.encode_after(request.prompt_token_ids, options.prediction, field)
    check_prediction(found, prediction, target.vocab_size, field)
    found.raise_if_any()
    return replace(request, prediction_token_ids=prediction)


def settle_token_ids(
    prompt_token_ids: Sequence[int],
    options: GenerationOptions,
    config: CoordinatorConfig,
    target: ModelInfo,
    prompt_field: str = "token_ids.ids",
    longest_answer: int | None = None,
) -> GenerationRequest:
    """The same when the prompt, which came in `prompt_field`, has been tokenized. Raises InvalidRequestError with
    everything that is wrong."""
    found = Violations()
    sampling = replace(options.sampling, seed=secrets.randbits(32)) if options.draw_seed else options.sampling
    check_line(found, prompt_token_ids, target.vocab_size, target.max_context, prompt_field)
    check_sampling(found, sampling, target.vocab_size)
    check_stop_token_ids(found, options.stop_token_ids, target.vocab_size, "stop_token_ids")
    check_num_logprobs(found, options.num_logprobs, "num_logprobs")
    check_stop(found, options.stop, "stop")
    room = target.max_context - len(prompt_token_ids)
    longest = UINT32_MAX if longest_answer is None else longest_answer
    default = max(min(MAX_TOKENS_DEFAULT, room, longest), 1)
    max_tokens = default if options.max_tokens is None else options.max_tokens
    found.check(max_tokens >= 1, "max_tokens", "must be at least 1")
    found.check(
        max_tokens <= room or room < 1,
        "max_tokens",
        f"is {max_tokens}; the context of {target.max_context} leaves {room} after a prompt of {len(prompt_token_ids)}",
    )
    found.check(max_tokens <= longest, "max_tokens", f"is {max_tokens}; this token allows at most {longest}")
    max_draft_tokens = config.max_draft_tokens if options.max_draft_tokens is None else options.max_draft_tokens
    found.check(
        0 <= max_draft_tokens <= min(config.max_draft_tokens, DRAFT_TOKENS_MAX),
        "speculation.max_draft_tokens",
        f"must be at most {config.max_draft_tokens}, which this coordinator is set to",
    )
    tree_width = config.tree_width if options.tree_width is None else options.tree_width
    found.check(
        0 <= tree_width <= min(TREE_WIDTH_MAX, config.max_run_ahead),
        "speculation.tree_width",
        f"must be between 0 (automatic) and {min(TREE_WIDTH_MAX, config.max_run_ahead)}",
    )
    num_completions = 1 if options.num_completions is None else options.num_completions
    num_completions_max = min(COMPLETIONS_MAX, config.max_requests)
    found.check(
        1 <= num_completions <= num_completions_max, "num_completions", f"must be between 1 and {num_completions_max}"
    )
    if options.resume is not None:
        check_resume(found, options, target, len(prompt_token_ids), max_tokens, num_completions)
    found.raise_if_any()
    return GenerationRequest(
        prompt_token_ids=prompt_token_ids,
        sampling=sampling,
        max_length=len(prompt_token_ids) + max_tokens,
        stop=options.stop,
        stop_token_ids=frozenset(options.stop_token_ids),
        ignore_eos=options.ignore_eos,
        num_logprobs=options.num_logprobs,
        speculate=options.speculate and max_draft_tokens > 0,
        max_draft_tokens=max_draft_tokens,
        tree_width=tree_width,
        num_completions=num_completions,
        received=(NOTHING_RECEIVED,) * num_completions if options.resume is None else options.resume.completions,
    )
