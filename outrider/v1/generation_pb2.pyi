from outrider.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TokenOrigin(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOKEN_ORIGIN_UNSPECIFIED: _ClassVar[TokenOrigin]
    TOKEN_ORIGIN_ACCEPTED: _ClassVar[TokenOrigin]
    TOKEN_ORIGIN_RECOVERED: _ClassVar[TokenOrigin]
    TOKEN_ORIGIN_BONUS: _ClassVar[TokenOrigin]
    TOKEN_ORIGIN_TARGET: _ClassVar[TokenOrigin]

class NodeFate(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_FATE_UNSPECIFIED: _ClassVar[NodeFate]
    NODE_FATE_ACCEPTED: _ClassVar[NodeFate]
    NODE_FATE_FORESEEN: _ClassVar[NodeFate]
    NODE_FATE_LIVE: _ClassVar[NodeFate]
    NODE_FATE_DROPPED: _ClassVar[NodeFate]

class GenerationMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GENERATION_MODE_UNSPECIFIED: _ClassVar[GenerationMode]
    GENERATION_MODE_SPECULATIVE: _ClassVar[GenerationMode]
    GENERATION_MODE_TARGET_ONLY: _ClassVar[GenerationMode]
    GENERATION_MODE_DEGRADED: _ClassVar[GenerationMode]
TOKEN_ORIGIN_UNSPECIFIED: TokenOrigin
TOKEN_ORIGIN_ACCEPTED: TokenOrigin
TOKEN_ORIGIN_RECOVERED: TokenOrigin
TOKEN_ORIGIN_BONUS: TokenOrigin
TOKEN_ORIGIN_TARGET: TokenOrigin
NODE_FATE_UNSPECIFIED: NodeFate
NODE_FATE_ACCEPTED: NodeFate
NODE_FATE_FORESEEN: NodeFate
NODE_FATE_LIVE: NodeFate
NODE_FATE_DROPPED: NodeFate
GENERATION_MODE_UNSPECIFIED: GenerationMode
GENERATION_MODE_SPECULATIVE: GenerationMode
GENERATION_MODE_TARGET_ONLY: GenerationMode
GENERATION_MODE_DEGRADED: GenerationMode

class GenerateRequest(_message.Message):
    __slots__ = ("text", "token_ids", "chat", "sampling", "max_tokens", "stop", "stop_token_ids", "ignore_eos", "num_logprobs", "speculation", "num_completions", "add_special_tokens", "resume")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    NUM_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    NUM_COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    ADD_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: TokenIds
    chat: ChatPrompt
    sampling: _common_pb2.SamplingParams
    max_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    num_logprobs: int
    speculation: SpeculationParams
    num_completions: int
    add_special_tokens: bool
    resume: Resume
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., chat: _Optional[_Union[ChatPrompt, _Mapping]] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., max_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: _Optional[bool] = ..., num_logprobs: _Optional[int] = ..., speculation: _Optional[_Union[SpeculationParams, _Mapping]] = ..., num_completions: _Optional[int] = ..., add_special_tokens: _Optional[bool] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("completions", "target_identity_sha256")
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    TARGET_IDENTITY_SHA256_FIELD_NUMBER: _ClassVar[int]
    completions: _containers.RepeatedCompositeFieldContainer[ReceivedCompletion]
    target_identity_sha256: str
    def __init__(self, completions: _Optional[_Iterable[_Union[ReceivedCompletion, _Mapping]]] = ..., target_identity_sha256: _Optional[str] = ...) -> None: ...

class ReceivedCompletion(_message.Message):
    __slots__ = ("token_ids", "finished", "num_cached_prompt_tokens")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    finished: bool
    num_cached_prompt_tokens: int
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., finished: _Optional[bool] = ..., num_cached_prompt_tokens: _Optional[int] = ...) -> None: ...

class ChatPrompt(_message.Message):
    __slots__ = ("messages", "continue_final_message", "chat_template_kwargs")
    class ChatTemplateKwargsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_FINAL_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_KWARGS_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    continue_final_message: bool
    chat_template_kwargs: _containers.ScalarMap[str, str]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ..., continue_final_message: _Optional[bool] = ..., chat_template_kwargs: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class SpeculationParams(_message.Message):
    __slots__ = ("enabled", "max_draft_tokens", "tree_width", "prediction", "report_rounds")
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TREE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    REPORT_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    enabled: bool
    max_draft_tokens: int
    tree_width: int
    prediction: str
    report_rounds: bool
    def __init__(self, enabled: _Optional[bool] = ..., max_draft_tokens: _Optional[int] = ..., tree_width: _Optional[int] = ..., prediction: _Optional[str] = ..., report_rounds: _Optional[bool] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("started", "tokens", "finished", "round")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    started: GenerateStarted
    tokens: GeneratedTokens
    finished: GenerateFinished
    round: Round
    def __init__(self, started: _Optional[_Union[GenerateStarted, _Mapping]] = ..., tokens: _Optional[_Union[GeneratedTokens, _Mapping]] = ..., finished: _Optional[_Union[GenerateFinished, _Mapping]] = ..., round: _Optional[_Union[Round, _Mapping]] = ...) -> None: ...

class GenerateStarted(_message.Message):
    __slots__ = ("request_id", "prompt_token_ids", "seed", "trace_id", "batch_invariant", "target_identity_sha256", "kv_cache_dtype")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    BATCH_INVARIANT_FIELD_NUMBER: _ClassVar[int]
    TARGET_IDENTITY_SHA256_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    seed: int
    trace_id: str
    batch_invariant: bool
    target_identity_sha256: str
    kv_cache_dtype: str
    def __init__(self, request_id: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., seed: _Optional[int] = ..., trace_id: _Optional[str] = ..., batch_invariant: _Optional[bool] = ..., target_identity_sha256: _Optional[str] = ..., kv_cache_dtype: _Optional[str] = ...) -> None: ...

class GeneratedTokens(_message.Message):
    __slots__ = ("position", "text", "tokens", "rolled_back", "num_draft_tokens", "completion", "num_cached_prompt_tokens")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ROLLED_BACK_FIELD_NUMBER: _ClassVar[int]
    NUM_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    position: int
    text: str
    tokens: _containers.RepeatedCompositeFieldContainer[GeneratedToken]
    rolled_back: bool
    num_draft_tokens: int
    completion: int
    num_cached_prompt_tokens: int
    def __init__(self, position: _Optional[int] = ..., text: _Optional[str] = ..., tokens: _Optional[_Iterable[_Union[GeneratedToken, _Mapping]]] = ..., rolled_back: _Optional[bool] = ..., num_draft_tokens: _Optional[int] = ..., completion: _Optional[int] = ..., num_cached_prompt_tokens: _Optional[int] = ...) -> None: ...

class GeneratedToken(_message.Message):
    __slots__ = ("token_id", "text", "origin", "logprobs")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    text: str
    origin: TokenOrigin
    logprobs: _common_pb2.TokenLogprobs
    def __init__(self, token_id: _Optional[int] = ..., text: _Optional[str] = ..., origin: _Optional[_Union[TokenOrigin, str]] = ..., logprobs: _Optional[_Union[_common_pb2.TokenLogprobs, _Mapping]] = ...) -> None: ...

class Round(_message.Message):
    __slots__ = ("completion", "number", "position", "at_ms", "verify_ms", "wait_ms", "verifier", "nodes", "num_accepted_drafts", "num_stale_nodes", "rolled_back", "draft_steps", "mode_reason")
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    VERIFY_MS_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    VERIFIER_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    NUM_ACCEPTED_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    NUM_STALE_NODES_FIELD_NUMBER: _ClassVar[int]
    ROLLED_BACK_FIELD_NUMBER: _ClassVar[int]
    DRAFT_STEPS_FIELD_NUMBER: _ClassVar[int]
    MODE_REASON_FIELD_NUMBER: _ClassVar[int]
    completion: int
    number: int
    position: int
    at_ms: float
    verify_ms: float
    wait_ms: float
    verifier: int
    nodes: _containers.RepeatedCompositeFieldContainer[RoundNode]
    num_accepted_drafts: int
    num_stale_nodes: int
    rolled_back: bool
    draft_steps: _containers.RepeatedCompositeFieldContainer[DraftStep]
    mode_reason: str
    def __init__(self, completion: _Optional[int] = ..., number: _Optional[int] = ..., position: _Optional[int] = ..., at_ms: _Optional[float] = ..., verify_ms: _Optional[float] = ..., wait_ms: _Optional[float] = ..., verifier: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[RoundNode, _Mapping]]] = ..., num_accepted_drafts: _Optional[int] = ..., num_stale_nodes: _Optional[int] = ..., rolled_back: _Optional[bool] = ..., draft_steps: _Optional[_Iterable[_Union[DraftStep, _Mapping]]] = ..., mode_reason: _Optional[str] = ...) -> None: ...

class RoundNode(_message.Message):
    __slots__ = ("parent", "token_id", "text", "log_prob", "prompt_lookup", "scored", "fate")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOG_PROB_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOOKUP_FIELD_NUMBER: _ClassVar[int]
    SCORED_FIELD_NUMBER: _ClassVar[int]
    FATE_FIELD_NUMBER: _ClassVar[int]
    parent: int
    token_id: int
    text: str
    log_prob: float
    prompt_lookup: bool
    scored: bool
    fate: NodeFate
    def __init__(self, parent: _Optional[int] = ..., token_id: _Optional[int] = ..., text: _Optional[str] = ..., log_prob: _Optional[float] = ..., prompt_lookup: _Optional[bool] = ..., scored: _Optional[bool] = ..., fate: _Optional[_Union[NodeFate, str]] = ...) -> None: ...

class DraftStep(_message.Message):
    __slots__ = ("at_ms", "draft_ms", "num_nodes", "drafter")
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_MS_FIELD_NUMBER: _ClassVar[int]
    NUM_NODES_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    at_ms: float
    draft_ms: float
    num_nodes: int
    drafter: int
    def __init__(self, at_ms: _Optional[float] = ..., draft_ms: _Optional[float] = ..., num_nodes: _Optional[int] = ..., drafter: _Optional[int] = ...) -> None: ...

class GenerateFinished(_message.Message):
    __slots__ = ("reason", "mode", "mode_reason", "text", "usage", "speculation", "timings", "completion")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    MODE_REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    reason: _common_pb2.FinishReason
    mode: GenerationMode
    mode_reason: str
    text: str
    usage: Usage
    speculation: SpeculationStatistics
    timings: Timings
    completion: int
    def __init__(self, reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ..., mode: _Optional[_Union[GenerationMode, str]] = ..., mode_reason: _Optional[str] = ..., text: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., speculation: _Optional[_Union[SpeculationStatistics, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., completion: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("num_prompt_tokens", "num_generated_tokens", "num_cached_prompt_tokens", "num_accepted_prediction_tokens", "num_rejected_prediction_tokens")
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_ACCEPTED_PREDICTION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_REJECTED_PREDICTION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_prompt_tokens: int
    num_generated_tokens: int
    num_cached_prompt_tokens: int
    num_accepted_prediction_tokens: int
    num_rejected_prediction_tokens: int
    def __init__(self, num_prompt_tokens: _Optional[int] = ..., num_generated_tokens: _Optional[int] = ..., num_cached_prompt_tokens: _Optional[int] = ..., num_accepted_prediction_tokens: _Optional[int] = ..., num_rejected_prediction_tokens: _Optional[int] = ...) -> None: ...

class SpeculationStatistics(_message.Message):
    __slots__ = ("num_rounds", "num_draft_tokens", "num_accepted_tokens", "num_rollbacks", "num_drafted_nodes", "num_stale_nodes", "acceptance_length", "acceptance_histogram", "num_rejections", "num_recovered_token_hits", "num_bonuses", "num_bonus_hits", "num_prompt_lookup_tokens", "num_accepted_prompt_lookup_tokens", "num_prediction_tokens", "num_accepted_prediction_tokens")
    NUM_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    NUM_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_ROLLBACKS_FIELD_NUMBER: _ClassVar[int]
    NUM_DRAFTED_NODES_FIELD_NUMBER: _ClassVar[int]
    NUM_STALE_NODES_FIELD_NUMBER: _ClassVar[int]
    ACCEPTANCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    ACCEPTANCE_HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    NUM_REJECTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_RECOVERED_TOKEN_HITS_FIELD_NUMBER: _ClassVar[int]
    NUM_BONUSES_FIELD_NUMBER: _ClassVar[int]
    NUM_BONUS_HITS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_LOOKUP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_ACCEPTED_PROMPT_LOOKUP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREDICTION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_ACCEPTED_PREDICTION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_rounds: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_rollbacks: int
    num_drafted_nodes: int
    num_stale_nodes: int
    acceptance_length: float
    acceptance_histogram: _containers.RepeatedScalarFieldContainer[int]
    num_rejections: int
    num_recovered_token_hits: int
    num_bonuses: int
    num_bonus_hits: int
    num_prompt_lookup_tokens: int
    num_accepted_prompt_lookup_tokens: int
    num_prediction_tokens: int
    num_accepted_prediction_tokens: int
    def __init__(self, num_rounds: _Optional[int] = ..., num_draft_tokens: _Optional[int] = ..., num_accepted_tokens: _Optional[int] = ..., num_rollbacks: _Optional[int] = ..., num_drafted_nodes: _Optional[int] = ..., num_stale_nodes: _Optional[int] = ..., acceptance_length: _Optional[float] = ..., acceptance_histogram: _Optional[_Iterable[int]] = ..., num_rejections: _Optional[int] = ..., num_recovered_token_hits: _Optional[int] = ..., num_bonuses: _Optional[int] = ..., num_bonus_hits: _Optional[int] = ..., num_prompt_lookup_tokens: _Optional[int] = ..., num_accepted_prompt_lookup_tokens: _Optional[int] = ..., num_prediction_tokens: _Optional[int] = ..., num_accepted_prediction_tokens: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("first_token_ms", "total_ms", "verify_ms", "verify_wait_ms", "draft_ms")
    FIRST_TOKEN_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    VERIFY_MS_FIELD_NUMBER: _ClassVar[int]
    VERIFY_WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_MS_FIELD_NUMBER: _ClassVar[int]
    first_token_ms: float
    total_ms: float
    verify_ms: float
    verify_wait_ms: float
    draft_ms: float
    def __init__(self, first_token_ms: _Optional[float] = ..., total_ms: _Optional[float] = ..., verify_ms: _Optional[float] = ..., verify_wait_ms: _Optional[float] = ..., draft_ms: _Optional[float] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "protocol_version", "target", "draft", "target_only_reason", "num_running", "replicas")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    TARGET_ONLY_REASON_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    version: str
    protocol_version: int
    target: _common_pb2.ModelInfo
    draft: _common_pb2.ModelInfo
    target_only_reason: str
    num_running: int
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    def __init__(self, version: _Optional[str] = ..., protocol_version: _Optional[int] = ..., target: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ..., draft: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ..., target_only_reason: _Optional[str] = ..., num_running: _Optional[int] = ..., replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("address", "service", "serving", "problem", "model", "load", "num_own_sessions")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    NUM_OWN_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    address: str
    service: str
    serving: bool
    problem: str
    model: _common_pb2.ModelInfo
    load: _common_pb2.WorkerLoad
    num_own_sessions: int
    def __init__(self, address: _Optional[str] = ..., service: _Optional[str] = ..., serving: _Optional[bool] = ..., problem: _Optional[str] = ..., model: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ..., load: _Optional[_Union[_common_pb2.WorkerLoad, _Mapping]] = ..., num_own_sessions: _Optional[int] = ...) -> None: ...

class GetTraceRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class GetTraceResponse(_message.Message):
    __slots__ = ("spans", "missing")
    SPANS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    spans: _containers.RepeatedCompositeFieldContainer[_common_pb2.TraceSpan]
    missing: _containers.RepeatedCompositeFieldContainer[MissingPart]
    def __init__(self, spans: _Optional[_Iterable[_Union[_common_pb2.TraceSpan, _Mapping]]] = ..., missing: _Optional[_Iterable[_Union[MissingPart, _Mapping]]] = ...) -> None: ...

class MissingPart(_message.Message):
    __slots__ = ("service", "address", "reason")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    service: str
    address: str
    reason: str
    def __init__(self, service: _Optional[str] = ..., address: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...
