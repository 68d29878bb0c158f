from outrider.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DraftCommands(_message.Message):
    __slots__ = ("commands", "closed", "checksum")
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    commands: _containers.RepeatedCompositeFieldContainer[DraftCommand]
    closed: _containers.RepeatedScalarFieldContainer[int]
    checksum: int
    def __init__(self, commands: _Optional[_Iterable[_Union[DraftCommand, _Mapping]]] = ..., closed: _Optional[_Iterable[int]] = ..., checksum: _Optional[int] = ...) -> None: ...

class DraftCommand(_message.Message):
    __slots__ = ("open", "commit", "rollback", "session")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    open: DraftOpen
    commit: Commit
    rollback: Rollback
    session: int
    def __init__(self, open: _Optional[_Union[DraftOpen, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., rollback: _Optional[_Union[Rollback, _Mapping]] = ..., session: _Optional[int] = ...) -> None: ...

class DraftOpen(_message.Message):
    __slots__ = ("session_id", "token_ids", "num_prompt_tokens", "sampling", "max_run_ahead", "tree_width", "max_length", "trace", "vocab_size", "cache_salt")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_RUN_AHEAD_FIELD_NUMBER: _ClassVar[int]
    TREE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_prompt_tokens: int
    sampling: _common_pb2.SamplingParams
    max_run_ahead: int
    tree_width: int
    max_length: int
    trace: _common_pb2.TraceContext
    vocab_size: int
    cache_salt: str
    def __init__(self, session_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., num_prompt_tokens: _Optional[int] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., max_run_ahead: _Optional[int] = ..., tree_width: _Optional[int] = ..., max_length: _Optional[int] = ..., trace: _Optional[_Union[_common_pb2.TraceContext, _Mapping]] = ..., vocab_size: _Optional[int] = ..., cache_salt: _Optional[str] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("position", "token_ids", "verify_ms", "probability_min", "cutoff_ms")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    VERIFY_MS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_MIN_FIELD_NUMBER: _ClassVar[int]
    CUTOFF_MS_FIELD_NUMBER: _ClassVar[int]
    position: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    verify_ms: float
    probability_min: float
    cutoff_ms: float
    def __init__(self, position: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., verify_ms: _Optional[float] = ..., probability_min: _Optional[float] = ..., cutoff_ms: _Optional[float] = ...) -> None: ...

class Rollback(_message.Message):
    __slots__ = ("position", "token_ids", "verify_ms", "probability_min", "cutoff_ms")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    VERIFY_MS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_MIN_FIELD_NUMBER: _ClassVar[int]
    CUTOFF_MS_FIELD_NUMBER: _ClassVar[int]
    position: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    verify_ms: float
    probability_min: float
    cutoff_ms: float
    def __init__(self, position: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., verify_ms: _Optional[float] = ..., probability_min: _Optional[float] = ..., cutoff_ms: _Optional[float] = ...) -> None: ...

class DraftEvents(_message.Message):
    __slots__ = ("events", "failed", "ended", "checksum")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[DraftEvent]
    failed: _containers.RepeatedCompositeFieldContainer[_common_pb2.SessionFailed]
    ended: _containers.RepeatedScalarFieldContainer[int]
    checksum: int
    def __init__(self, events: _Optional[_Iterable[_Union[DraftEvent, _Mapping]]] = ..., failed: _Optional[_Iterable[_Union[_common_pb2.SessionFailed, _Mapping]]] = ..., ended: _Optional[_Iterable[int]] = ..., checksum: _Optional[int] = ...) -> None: ...

class DraftEvent(_message.Message):
    __slots__ = ("opened", "drafted", "session")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    opened: DraftOpened
    drafted: _common_pb2.Drafted
    session: int
    def __init__(self, opened: _Optional[_Union[DraftOpened, _Mapping]] = ..., drafted: _Optional[_Union[_common_pb2.Drafted, _Mapping]] = ..., session: _Optional[int] = ...) -> None: ...

class DraftOpened(_message.Message):
    __slots__ = ("num_line_tokens",)
    NUM_LINE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_line_tokens: int
    def __init__(self, num_line_tokens: _Optional[int] = ...) -> None: ...
