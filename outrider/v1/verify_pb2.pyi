from outrider.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VerifyCommands(_message.Message):
    __slots__ = ("commands", "closed", "checksum")
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    commands: _containers.RepeatedCompositeFieldContainer[VerifyCommand]
    closed: _containers.RepeatedScalarFieldContainer[int]
    checksum: int
    def __init__(self, commands: _Optional[_Iterable[_Union[VerifyCommand, _Mapping]]] = ..., closed: _Optional[_Iterable[int]] = ..., checksum: _Optional[int] = ...) -> None: ...

class VerifyCommand(_message.Message):
    __slots__ = ("open", "drafted", "drafts_ended", "session")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_ENDED_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    open: VerifyOpen
    drafted: _common_pb2.Drafted
    drafts_ended: DraftsEnded
    session: int
    def __init__(self, open: _Optional[_Union[VerifyOpen, _Mapping]] = ..., drafted: _Optional[_Union[_common_pb2.Drafted, _Mapping]] = ..., drafts_ended: _Optional[_Union[DraftsEnded, _Mapping]] = ..., session: _Optional[int] = ...) -> None: ...

class VerifyOpen(_message.Message):
    __slots__ = ("session_id", "token_ids", "num_prompt_tokens", "sampling", "max_length", "stop_token_ids", "ignore_eos", "max_draft_tokens", "expect_drafts", "num_logprobs", "trace", "time_left_ms", "prediction_token_ids", "report_scored", "cache_salt")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXPECT_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    NUM_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    TIME_LEFT_MS_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    REPORT_SCORED_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_prompt_tokens: int
    sampling: _common_pb2.SamplingParams
    max_length: int
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    max_draft_tokens: int
    expect_drafts: bool
    num_logprobs: int
    trace: _common_pb2.TraceContext
    time_left_ms: int
    prediction_token_ids: _containers.RepeatedScalarFieldContainer[int]
    report_scored: bool
    cache_salt: str
    def __init__(self, session_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., num_prompt_tokens: _Optional[int] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., max_length: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: _Optional[bool] = ..., max_draft_tokens: _Optional[int] = ..., expect_drafts: _Optional[bool] = ..., num_logprobs: _Optional[int] = ..., trace: _Optional[_Union[_common_pb2.TraceContext, _Mapping]] = ..., time_left_ms: _Optional[int] = ..., prediction_token_ids: _Optional[_Iterable[int]] = ..., report_scored: _Optional[bool] = ..., cache_salt: _Optional[str] = ...) -> None: ...

class DraftsEnded(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VerifyEvents(_message.Message):
    __slots__ = ("events", "failed", "ended", "checksum")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[VerifyEvent]
    failed: _containers.RepeatedCompositeFieldContainer[_common_pb2.SessionFailed]
    ended: _containers.RepeatedScalarFieldContainer[int]
    checksum: int
    def __init__(self, events: _Optional[_Iterable[_Union[VerifyEvent, _Mapping]]] = ..., failed: _Optional[_Iterable[_Union[_common_pb2.SessionFailed, _Mapping]]] = ..., ended: _Optional[_Iterable[int]] = ..., checksum: _Optional[int] = ...) -> None: ...

class VerifyEvent(_message.Message):
    __slots__ = ("opened", "verdict", "finished", "session")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    opened: VerifyOpened
    verdict: Verdict
    finished: VerifyFinished
    session: int
    def __init__(self, opened: _Optional[_Union[VerifyOpened, _Mapping]] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., finished: _Optional[_Union[VerifyFinished, _Mapping]] = ..., session: _Optional[int] = ...) -> None: ...

class VerifyOpened(_message.Message):
    __slots__ = ("num_line_tokens",)
    NUM_LINE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_line_tokens: int
    def __init__(self, num_line_tokens: _Optional[int] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("position", "token_ids", "num_accepted", "num_draft_tokens", "num_stale_nodes", "verify_ms", "wait_ms", "logprobs", "bonus", "probability_min", "num_cached_tokens", "num_prompt_lookup", "num_accepted_prompt_lookup", "num_prediction", "num_accepted_prediction", "scored_parents", "scored_token_ids", "cutoff_ms")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    NUM_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_STALE_NODES_FIELD_NUMBER: _ClassVar[int]
    VERIFY_MS_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    BONUS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_MIN_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_LOOKUP_FIELD_NUMBER: _ClassVar[int]
    NUM_ACCEPTED_PROMPT_LOOKUP_FIELD_NUMBER: _ClassVar[int]
    NUM_PREDICTION_FIELD_NUMBER: _ClassVar[int]
    NUM_ACCEPTED_PREDICTION_FIELD_NUMBER: _ClassVar[int]
    SCORED_PARENTS_FIELD_NUMBER: _ClassVar[int]
    SCORED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CUTOFF_MS_FIELD_NUMBER: _ClassVar[int]
    position: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_accepted: int
    num_draft_tokens: int
    num_stale_nodes: int
    verify_ms: float
    wait_ms: float
    logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprobs]
    bonus: bool
    probability_min: float
    num_cached_tokens: int
    num_prompt_lookup: int
    num_accepted_prompt_lookup: int
    num_prediction: int
    num_accepted_prediction: int
    scored_parents: _containers.RepeatedScalarFieldContainer[int]
    scored_token_ids: _containers.RepeatedScalarFieldContainer[int]
    cutoff_ms: float
    def __init__(self, position: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., num_accepted: _Optional[int] = ..., num_draft_tokens: _Optional[int] = ..., num_stale_nodes: _Optional[int] = ..., verify_ms: _Optional[float] = ..., wait_ms: _Optional[float] = ..., logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprobs, _Mapping]]] = ..., bonus: _Optional[bool] = ..., probability_min: _Optional[float] = ..., num_cached_tokens: _Optional[int] = ..., num_prompt_lookup: _Optional[int] = ..., num_accepted_prompt_lookup: _Optional[int] = ..., num_prediction: _Optional[int] = ..., num_accepted_prediction: _Optional[int] = ..., scored_parents: _Optional[_Iterable[int]] = ..., scored_token_ids: _Optional[_Iterable[int]] = ..., cutoff_ms: _Optional[float] = ...) -> None: ...

class VerifyFinished(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: _common_pb2.FinishReason
    def __init__(self, reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ...) -> None: ...

class GetTokenizerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetTokenizerResponse(_message.Message):
    __slots__ = ("chunk", "num_bytes", "sha256", "chat_templates", "special_tokens")
    class ChatTemplatesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class SpecialTokensEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    num_bytes: int
    sha256: str
    chat_templates: _containers.ScalarMap[str, str]
    special_tokens: _containers.ScalarMap[str, str]
    def __init__(self, chunk: _Optional[bytes] = ..., num_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., chat_templates: _Optional[_Mapping[str, str]] = ..., special_tokens: _Optional[_Mapping[str, str]] = ...) -> None: ...
