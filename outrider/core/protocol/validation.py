"""Request validation: every bound on what a peer may ask, for every entry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from outrider.core.protocol.errors import FieldViolation, InvalidRequestError, ProtocolViolationError
from outrider.core.protocol.grammar import Grammar
from outrider.core.protocol.messages import DraftOpen, ModelInfo, VerifyOpen, WorkerLoad
from outrider.core.protocol.sampling import SamplingParams

TEMPERATURE_MAX = 100.0
"""Above it every distribution is flat for practical purposes."""
PENALTY_MAX = 100.0
"""Largest size of a repetition, presence or frequency penalty."""
LOGIT_BIAS_MAX = 1000.0
"""Largest size of one bias: beyond the range of any model's logits."""
LOGIT_BIAS_ENTRIES_MAX = 1024
"""Most biased token ids in one request."""
COMPLETIONS_MAX = 16
"""Most completions of one request; each is a session of its own at both workers."""
STOP_STRINGS_MAX = 16
"""Most stop strings in one request."""
STOP_STRING_CHARACTERS_MAX = 256
"""Longest stop string; as much text may be held back."""
GRAMMAR_BYTES_MAX = 128 * 1024
"""Longest grammar: some ten times the largest schemas that services publish for their calls. Compiling is bounded apart
from it."""
BEGINS_AFTER_CHARACTERS_MAX = STOP_STRING_CHARACTERS_MAX
"""Longest text that a grammar begins after."""
STOP_TOKEN_IDS_MAX = 64
"""Most stop token ids in one request."""
LOGPROBS_MAX = 20
"""Most alternatives reported beside a token."""
TREE_WIDTH_MAX = 8
"""Most children of one node."""
AUTOMATIC_WIDTH_MAX = 4
"""Most children of a node when the width is automatic. With the bundled pair at temperature 0.8 the target's token is
among the first 1, 2, 3, 4, 5 guesses in 0.75, 0.88, 0.92, 0.95, 0.96 of all places: `coverage` of that temperature in
bench/results/bundled.json, counted by `outrider bench`."""
EXPANSIONS_MAX = 16
"""Most nodes that a drafter expands in one step, over all sessions, or one for each where those are more: the largest
batch that runs compiled. Up to it the step-time curve decides."""
RUN_AHEAD_MAX = 256
"""Most live nodes that a drafter may be granted."""
DRAFT_TOKENS_MAX = 256
"""Most draft tokens in one round."""
SESSIONS_MAX = 1024
"""Most sessions that one worker may be configured for."""
SESSION_ID_CHARACTERS_MAX = 128
"""Longest session name."""
CACHE_SALT_CHARACTERS_MAX = 128
"""Longest cache salt: longer than any name of a token."""
TOP_K_MAX = 2**31 - 1
"""Largest `top_k`: more than any vocabulary has, and what a message can carry."""
SEED_MAX = 2**64 - 1
"""Seeds are unsigned 64-bit integers."""
PROMPT_BYTES_MAX = 1024 * 1024
"""Longest prompt text, a quarter of a million tokens of English; a longer one can be sent as token ids. Tokenizing it
takes a second, and 350 MB at the coordinator."""
PREDICTION_TOKENS_MAX = 16_384
"""Longest prediction, a file of some 2,000 lines: a verifier's index of it takes 5 MB then."""
CHAT_TEMPLATE_BYTES_MAX = 1024 * 1024
"""Largest chat templates and special tokens of a model, together: they travel in one message. Published templates have
some kilobytes."""
MODEL_TEXT_CHARACTERS_MAX = 256
"""Longest name, type, device or hash by which a worker says what it serves."""
END_TOKENS_MAX = 1024
"""Most end-of-text tokens of a model; published ones have up to some tens."""
UINT32_MAX = 2**32 - 1
"""Largest number of most fields on the wire."""


class Violations:
    """Collects what is wrong with one request, so that the caller hears everything at once."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []

    def check(self, holds: bool, field: str, description: str) -> None:
        """Notes a violation of `field` unless `holds`."""
        if not holds:
            self._found.append(FieldViolation(field, description))

    def raise_if_any(self) -> None:
        """Raises InvalidRequestError if a violation was noted."""
        if self._found:
            raise InvalidRequestError(self._found)


def check_sampling(found: Violations, sampling: SamplingParams, vocab_size: int, field: str = "sampling") -> None:
    """Checks every sampling parameter; NaN and infinities fail every range."""
    ranges: Sequence[tuple[str, float, Callable[[float], bool], str]] = (
        (
            "temperature",
            sampling.temperature,
            lambda x: 0 <= x <= TEMPERATURE_MAX,
            f"between 0 and {TEMPERATURE_MAX:g}",
        ),
        ("top_p", sampling.top_p, lambda x: 0 < x <= 1, "above 0 and at most 1"),
        ("top_k", sampling.top_k, lambda x: 0 <= x <= TOP_K_MAX, f"between 0 and {TOP_K_MAX}"),
        ("min_p", sampling.min_p, lambda x: 0 <= x <= 1, "between 0 and 1"),
        (
            "repetition_penalty",
            sampling.repetition_penalty,
            lambda x: 0 < x <= PENALTY_MAX,
            f"above 0 and at most {PENALTY_MAX:g}",
        ),
        (
            "presence_penalty",
            sampling.presence_penalty,
            lambda x: abs(x) <= PENALTY_MAX,
            f"between -{PENALTY_MAX:g} and {PENALTY_MAX:g}",
        ),
        (
            "frequency_penalty",
            sampling.frequency_penalty,
            lambda x: abs(x) <= PENALTY_MAX,
            f"between -{PENALTY_MAX:g} and {PENALTY_MAX:g}",
        ),
        ("seed", sampling.seed, lambda x: 0 <= x <= SEED_MAX, "an unsigned 64-bit integer"),
    )
    for name, value, holds, description in ranges:
        found.check(math.isfinite(value) and holds(value), f"{field}.{name}", f"must be {description}, not {value}")
    found.check(
        len(sampling.logit_bias) <= LOGIT_BIAS_ENTRIES_MAX,
        f"{field}.logit_bias",
        f"has {len(sampling.logit_bias)} entries; at most {LOGIT_BIAS_ENTRIES_MAX} are allowed",
    )
    check_token_ids(found, [token_id for token_id, _ in sampling.logit_bias], vocab_size, f"{field}.logit_bias")
    found.check(
        all(math.isfinite(bias) and abs(bias) <= LOGIT_BIAS_MAX for _, bias in sampling.logit_bias),
        f"{field}.logit_bias",
        f"each bias must be between -{LOGIT_BIAS_MAX:g} and {LOGIT_BIAS_MAX:g}",
    )
    if sampling.grammar is not None:
        _check_grammar(found, sampling.grammar, f"{field}.grammar")


def _check_grammar(found: Violations, grammar: Grammar, field: str) -> None:
    num_bytes = len(grammar.source.encode(errors="surrogatepass"))
    found.check(
        0 < num_bytes <= GRAMMAR_BYTES_MAX,
        f"{field}.{grammar.kind}",
        f"has {num_bytes} bytes; it must have at least 1 and at most {GRAMMAR_BYTES_MAX}",
    )
    found.check(
        len(grammar.begins_after) <= BEGINS_AFTER_CHARACTERS_MAX,
        f"{field}.begins_after",
        f"must have at most {BEGINS_AFTER_CHARACTERS_MAX} characters",
    )


def check_token_ids(found: Violations, token_ids: Sequence[int], vocab_size: int, field: str) -> None:
    """Every id indexes a row of the model: it must be below the vocabulary's size."""
    if token_ids:
        worst = max(token_ids) if min(token_ids) >= 0 else min(token_ids)
        found.check(
            0 <= worst < vocab_size, field, f"token id {worst} is out of range: the vocabulary has {vocab_size} tokens"
        )


def check_model_info(info: ModelInfo) -> None:
    """Raises ProtocolViolationError unless a worker's word of what it serves can be true, and may be shown."""
    for name, value in info._asdict().items():
        if isinstance(value, str) and not (len(value) <= MODEL_TEXT_CHARACTERS_MAX and value.isprintable()):
            raise ProtocolViolationError(
                f"{name} of the worker's model has more than {MODEL_TEXT_CHARACTERS_MAX} characters, or such as cannot "
                "be shown"
            )
    if not (
        info.vocab_size >= 1
        and len(info.eos_token_ids) <= END_TOKENS_MAX
        and all(token_id < info.vocab_size for token_id in info.eos_token_ids)
        and info.max_context >= 2
        and 1 <= info.max_sessions <= SESSIONS_MAX
    ):
        raise ProtocolViolationError(
            "the worker's model has no vocabulary, ends of text beyond it, no context, or no bound on its sessions"
        )


def check_load(load: WorkerLoad) -> None:
    """Raises ProtocolViolationError unless a worker's word of how busy it is can be true."""
    if len(load.instance_id) > MODEL_TEXT_CHARACTERS_MAX or not 0.0 <= load.step_ms < math.inf:
        raise ProtocolViolationError("the worker's load has a name that is too long, or a time that is none")


def check_line(found: Violations, token_ids: Sequence[int], vocab_size: int, max_context: int, field: str) -> None:
    """A line has at least one token and leaves room for one more in the model's context."""
    found.check(len(token_ids) > 0, field, "must not be empty")
    found.check(
        len(token_ids) < max_context,
        field,
        f"has {len(token_ids)} tokens; the context of {max_context} leaves room for at most {max_context - 1}",
    )
    check_token_ids(found, token_ids, vocab_size, field)


def check_draft_open(opening: DraftOpen, vocab_size: int, max_context: int) -> None:
    """Raises InvalidRequestError unless a drafter can serve the opening."""
    found = Violations()
    _check_opening(found, opening, vocab_size, max_context)
    found.check(0 <= opening.tree_width <= TREE_WIDTH_MAX, "open.tree_width", f"must be between 0 and {TREE_WIDTH_MAX}")
    found.check(
        (opening.tree_width or AUTOMATIC_WIDTH_MAX) <= opening.max_run_ahead <= RUN_AHEAD_MAX,
        "open.max_run_ahead",
        f"must be between the tree width ({AUTOMATIC_WIDTH_MAX} if automatic) and {RUN_AHEAD_MAX}",
    )
    found.check(opening.vocab_size >= 1, "open.vocab_size", "must be the number of token ids that the target knows")
    found.raise_if_any()


def check_verify_open(opening: VerifyOpen, vocab_size: int, max_context: int) -> None:
    """Raises InvalidRequestError unless a verifier can serve the opening."""
    found = Violations()
    _check_opening(found, opening, vocab_size, max_context)
    check_stop_token_ids(found, sorted(opening.stop_token_ids), vocab_size, "open.stop_token_ids")
    check_num_logprobs(found, opening.num_logprobs, "open.num_logprobs")
    found.check(
        0 <= opening.max_draft_tokens <= DRAFT_TOKENS_MAX,
        "open.max_draft_tokens",
        f"must be at most {DRAFT_TOKENS_MAX}",
    )
    check_prediction(found, opening.prediction_token_ids, vocab_size, "open.prediction_token_ids")
    found.raise_if_any()


def check_prediction(found: Violations, token_ids: Sequence[int], vocab_size: int, field: str) -> None:
    """At most PREDICTION_TOKENS_MAX ids of the vocabulary."""
    found.check(
        len(token_ids) <= PREDICTION_TOKENS_MAX,
        field,
        f"has {len(token_ids)} tokens; at most {PREDICTION_TOKENS_MAX} are allowed",
    )
    check_token_ids(found, token_ids, vocab_size, field)


def check_stop_token_ids(found: Violations, token_ids: Sequence[int], vocab_size: int, field: str) -> None:
    """At most STOP_TOKEN_IDS_MAX ids of the vocabulary."""
    found.check(
        len(token_ids) <= STOP_TOKEN_IDS_MAX,
        field,
        f"has {len(token_ids)} ids; at most {STOP_TOKEN_IDS_MAX} are allowed",
    )
    check_token_ids(found, token_ids, vocab_size, field)


def check_stop(found: Violations, stop: Sequence[str], field: str) -> None:
    """At most STOP_STRINGS_MAX strings, none of them empty or very long."""
    found.check(len(stop) <= STOP_STRINGS_MAX, field, f"at most {STOP_STRINGS_MAX} strings are allowed")
    found.check(
        all(1 <= len(each) <= STOP_STRING_CHARACTERS_MAX for each in stop),
        field,
        f"each string must have 1 to {STOP_STRING_CHARACTERS_MAX} characters",
    )


def check_num_logprobs(found: Violations, num_logprobs: int | None, field: str) -> None:
    """Unset, or at most LOGPROBS_MAX."""
    found.check(num_logprobs is None or 0 <= num_logprobs <= LOGPROBS_MAX, field, f"must be at most {LOGPROBS_MAX}")


def _check_opening(found: Violations, opening: DraftOpen | VerifyOpen, vocab_size: int, max_context: int) -> None:
    found.check(
        len(opening.session_id) <= SESSION_ID_CHARACTERS_MAX,
        "open.session_id",
        f"must have at most {SESSION_ID_CHARACTERS_MAX} characters",
    )
    found.check(
        len(opening.cache_salt) <= CACHE_SALT_CHARACTERS_MAX,
        "open.cache_salt",
        f"must have at most {CACHE_SALT_CHARACTERS_MAX} characters",
    )
    check_line(found, opening.token_ids, vocab_size, max_context, "open.token_ids")
    found.check(
        1 <= opening.num_prompt_tokens <= len(opening.token_ids),
        "open.num_prompt_tokens",
        "must be at least 1 and at most the number of token_ids",
    )
    found.check(
        len(opening.token_ids) < opening.max_length <= max_context,
        "open.max_length",
        f"must exceed the number of token_ids and be at most the context of {max_context}",
    )
    check_sampling(found, opening.sampling, vocab_size, "open.sampling")
