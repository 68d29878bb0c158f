"""Every name of a span, an attribute or a metric, but for the counts of speculation.

The `gen_ai.*` names follow OpenTelemetry's conventions for generative AI, which are in development: they stand here
rather than in a library, so that they change only when we change them. The conventions know no speculation, so that is
`outrider.*`. Names of its counts stand in `COUNTERS` of `outrider/core/coordinate/statistics.py`.
"""

from __future__ import annotations

from typing import Final

# --- spans

SPAN_DRAFT_SESSION: Final = "draft session"
"""A Draft stream, at the drafter."""
SPAN_VERIFY_SESSION: Final = "verify session"
"""A Verify stream, at the verifier."""
SPAN_DRAFT_STEP: Final = "draft step"
"""The forward passes of the draft model behind one window of nodes."""
SPAN_VERIFY_STEP: Final = "verify step"
"""One forward pass of the target model for one session: a round, seen by the verifier."""
SPAN_ROUND: Final = "round"
"""One verdict, seen by the coordinator."""


def request_span(model: str) -> str:
    """Name of a request's root span, at the coordinator."""
    return f"{OPERATION_TEXT_COMPLETION} {model}"


# --- attributes by the conventions for generative AI

GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"
OPERATION_TEXT_COMPLETION: Final = "text_completion"
GEN_AI_PROVIDER_NAME: Final = "gen_ai.provider.name"
PROVIDER_OUTRIDER: Final = "outrider"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
GEN_AI_REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
GEN_AI_REQUEST_TOP_P: Final = "gen_ai.request.top_p"
GEN_AI_REQUEST_TOP_K: Final = "gen_ai.request.top_k"
GEN_AI_REQUEST_PRESENCE_PENALTY: Final = "gen_ai.request.presence_penalty"
GEN_AI_REQUEST_FREQUENCY_PENALTY: Final = "gen_ai.request.frequency_penalty"
GEN_AI_REQUEST_CHOICE_COUNT: Final = "gen_ai.request.choice.count"
"""How many completions were asked for; set where it is not one, by the conventions."""
GEN_AI_REQUEST_SEED: Final = "gen_ai.request.seed"
GEN_AI_REQUEST_STOP_SEQUENCES: Final = "gen_ai.request.stop_sequences"
GEN_AI_RESPONSE_ID: Final = "gen_ai.response.id"
GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
GEN_AI_RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
"""One for each completion that ended, in order of their numbers."""
GEN_AI_USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
ERROR_TYPE: Final = "error.type"

# --- attributes of our own

MODE: Final = "outrider.mode"
"""How the tokens were produced: of the first completion whose mode is not what was asked for, else of the first."""
MODE_REASON: Final = "outrider.mode_reason"
BATCH_INVARIANT: Final = "outrider.batch_invariant"
"""Whether all verifiers compute logits that do not depend on the batch, so that the tokens are exactly the target's."""
SEED: Final = "outrider.seed"
"""The seed in decimal digits: OpenTelemetry's integers end at 2**63 - 1, ours at 2**64 - 1."""
SESSION_ID: Final = "outrider.session.id"
SESSION_QUEUE_MS: Final = "outrider.session.queue_ms"
"""From the opening of a worker's session until it had a slot."""
SESSION_STEP_MS: Final = "outrider.session.step_ms"
"""Sum of the forward passes that worked for a session, each with what it did for others."""
SESSION_WAIT_MS: Final = "outrider.session.wait_ms"
"""Sum of the times from each verdict, or from the opening, to the start of the next verify step."""
SESSION_NUM_ROUNDS: Final = "outrider.session.num_rounds"
"""Verdicts that the verifier made, or that the drafter was told of."""
SESSION_NUM_TOKENS: Final = "outrider.session.num_tokens"
"""Tokens that these committed."""
SESSION_NUM_DRAFT_TOKENS: Final = "outrider.session.num_draft_tokens"
"""Draft tokens that the verifier scored."""
SESSION_NUM_ACCEPTED: Final = "outrider.session.num_accepted_tokens"
"""Those of them that it accepted."""
SESSION_NUM_NODES: Final = "outrider.session.num_nodes"
"""Nodes that the drafter sent."""
SESSION_NUM_ROLLBACKS: Final = "outrider.session.num_rollbacks"
"""Verdicts that voided the drafter's guesses."""
NUM_CACHED_PROMPT_TOKENS: Final = "outrider.num_cached_prompt_tokens"
"""Tokens of the prompt that the verifier had already read, over all completions."""
COMPLETIONS_MODES: Final = "outrider.completions.modes"
COMPLETIONS_NUM_OUTPUT_TOKENS: Final = "outrider.completions.num_output_tokens"
COMPLETIONS_NUM_ROUNDS: Final = "outrider.completions.num_rounds"
"""One entry for each completion that ended, in order of their numbers. This one says which of the rounds below are
whose: those of the first completion come first."""
DRAFT_MODEL: Final = "outrider.draft.model"
"""Name of the draft model; of several, sorted and with commas, where completions had different ones."""
ROUNDS_NUM_DRAFT_TOKENS: Final = "outrider.rounds.num_draft_tokens"
"""For each round of a request the number of draft tokens that the target scored, completion by completion."""
ROUNDS_NUM_ACCEPTED: Final = "outrider.rounds.num_accepted"
"""For each round of a request the number of draft tokens that the target accepted, completion by completion."""
ROUND_COMPLETION: Final = "outrider.round.completion"
ROUND_INDEX: Final = "outrider.round.index"
"""Number of the round in its completion, from 0 on."""
ROUND_POSITION: Final = "outrider.round.position"
ROUND_NUM_DRAFT_TOKENS: Final = "outrider.round.num_draft_tokens"
ROUND_NUM_ACCEPTED: Final = "outrider.round.num_accepted"
ROUND_ROLLED_BACK: Final = "outrider.round.rolled_back"
STEP_NUM_NODES: Final = "outrider.step.num_nodes"
"""Nodes that came of the step."""

REPLICA_SERVICE: Final = "outrider.replica.service"
"""Full name of the service that a worker offers."""
REPLICA_ADDRESS: Final = "outrider.replica.address"

ACCESS_REASON: Final = "outrider.access.reason"
"""Why a caller was refused, by one of a few words."""

TOKEN_NAME: Final = "outrider.token.name"
"""Of whoever asked, as the token file has it."""
TOKEN_USE: Final = "outrider.token.use"
USE_PROMPT: Final = "prompt"
USE_ANSWER: Final = "answer"

# --- metrics

METRIC_TOKEN_USAGE: Final = "outrider.token.usage"
"""Tokens of prompts and answers by whoever asked."""

METRIC_ACCESS_REFUSED: Final = "outrider.access.refused"
"""Calls and connections that were refused because of who made them."""

METRIC_REPLICA_SESSIONS: Final = "outrider.replica.sessions"
METRIC_REPLICA_MOVES: Final = "outrider.replica.moves"
METRIC_WORKER_SESSIONS: Final = "outrider.worker.sessions"
METRIC_WORKER_QUEUED: Final = "outrider.num_requests_waiting"
"""By vLLM's name, as are the others whose names have underscores: its dashboards then need another prefix only."""
METRIC_WORKER_UNCOMPUTED_TOKENS: Final = "outrider.worker.uncomputed.tokens"
METRIC_WORKER_KV_TOKENS: Final = "outrider.worker.kv.tokens"
METRIC_WORKER_FREE_KV_TOKENS: Final = "outrider.worker.kv.free.tokens"
METRIC_WORKER_KV_USAGE: Final = "outrider.kv_cache_usage_perc"
"""From 0 to 1, whatever its name says."""
METRIC_WORKER_KV_MEMORY: Final = "outrider.worker.kv.memory"
METRIC_WORKER_MEMORY_LIMIT: Final = "outrider.worker.memory.limit"
METRIC_WORKER_PROMPT_TOKENS: Final = "outrider.worker.prompt.tokens"
METRIC_WORKER_CACHED_TOKENS: Final = "outrider.worker.prompt.cached.tokens"
METRIC_REQUESTS_RUNNING: Final = "outrider.num_requests_running"
METRIC_PROMPT_TOKENS: Final = "outrider.prompt_tokens"
METRIC_GENERATION_TOKENS: Final = "outrider.generation_tokens"
METRIC_NUM_DRAFTS: Final = "outrider.spec_decode.num_drafts"
METRIC_ACCEPTED_PER_POSITION: Final = "outrider.spec_decode.num_accepted_tokens_per_pos"
POSITION: Final = "position"
METRIC_COMPLETIONS: Final = "outrider.completions"
METRIC_VERIFY_TIME: Final = "outrider.verify.time"
METRIC_VERIFY_WAIT_TIME: Final = "outrider.verify.wait.time"
METRIC_DRAFT_TIME: Final = "outrider.draft.time"
METRIC_INTER_TOKEN_LATENCY: Final = "outrider.inter_token_latency"
METRIC_SPECULATION_PAUSED: Final = "outrider.speculation.paused"
"""1 while the coordinator lets the target decode alone because speculation does not pay, else 0."""
METRIC_REQUEST_DURATION: Final = "gen_ai.server.request.duration"
METRIC_TIME_TO_FIRST_TOKEN: Final = "gen_ai.server.time_to_first_token"
