"""Resumption: what a client says that it has of an answer is checked, before the answer is continued behind it."""

from __future__ import annotations

from outrider.core.protocol.errors import ModelMismatchError
from outrider.core.protocol.messages import ModelInfo
from outrider.core.protocol.options import GenerationOptions
from outrider.core.protocol.resume import ReceivedCompletion, Resume
from outrider.core.protocol.validation import Violations, check_token_ids


def require_same_target(resume: Resume, target: ModelInfo) -> None:
    """Raises ModelMismatchError if another target began the answer: two models would have written it."""
    if resume.target_identity_sha256 != target.identity_sha256:
        raise ModelMismatchError(
            f"another target than {target.name!r}, which is served here, began this answer; resume it at a coordinator "
            "that serves the same, or begin anew without `resume`"
        )


def check_resume(
    found: Violations,
    options: GenerationOptions,
    target: ModelInfo,
    num_prompt_tokens: int,
    max_tokens: int,
    num_completions: int,
) -> None:
    """Checks what has come of an answer to `options`. Where a stop string ends it is `TargetTokenizer`'s to say."""
    assert options.resume is not None
    completions = options.resume.completions
    found.check(not options.draw_seed, "sampling.seed", "must be that of `started` when an answer is resumed")
    found.check(
        len(completions) == num_completions,
        "resume.completions",
        f"has {len(completions)} entries; the request has {num_completions} completions",
    )
    found.check(
        not completions or not all(each.finished for each in completions),
        "resume.completions",
        "have all ended; nothing is left to resume",
    )
    ends = frozenset([*options.stop_token_ids, *(() if options.ignore_eos else target.eos_token_ids)])
    for number, received in enumerate(completions[:num_completions]):
        field = f"resume.completions[{number}]"
        _check_received(found, received, max_tokens, ends, f"{field}.token_ids")
        check_token_ids(found, received.token_ids, target.vocab_size, f"{field}.token_ids")
        found.check(
            0 <= (received.num_cached_prompt_tokens or 0) <= num_prompt_tokens,
            f"{field}.num_cached_prompt_tokens",
            f"must be at most {num_prompt_tokens}, the tokens of the prompt",
        )


def _check_received(
    found: Violations, received: ReceivedCompletion, max_tokens: int, ends: frozenset[int], field: str
) -> None:
    token_ids = received.token_ids
    found.check(not received.finished or not token_ids, field, "must be left out: the completion has ended")
    found.check(len(token_ids) <= max_tokens, field, f"has {len(token_ids)} tokens; max_tokens is {max_tokens}")
    found.check(ends.isdisjoint(token_ids[:-1]), field, "goes on behind a token that ends the completion")
