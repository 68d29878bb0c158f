"""The wire: what is encoded, serialized, parsed and decoded is what was there; what a peer invents is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.grammar import Grammar, GrammarKind
from outrider.core.protocol.messages import (
    NOT_TRACED,
    Commitment,
    DraftOpen,
    DraftWindow,
    EndDrafts,
    FinishReason,
    ModelInfo,
    Opened,
    ScoredNodes,
    TokenLogprobs,
    TokenOrigin,
    TraceContext,
    Verdict,
    VerifyFinished,
    VerifyOpen,
)
from outrider.core.protocol.sampling import SamplingParams
from outrider.rpc import wire
from outrider.v1 import common_pb2, draft_pb2, generation_pb2, verify_pb2

UINT32 = st.integers(0, 2**32 - 1)
UINT64 = st.integers(0, 2**64 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False)
FLOAT64 = st.floats(allow_nan=False)
TEXT = st.text(max_size=20)
UINT32S = st.lists(UINT32, max_size=8)


def samplings() -> st.SearchStrategy[SamplingParams]:
    return st.builds(
        SamplingParams,
        temperature=FLOAT32,
        top_p=FLOAT32,
        top_k=UINT32,
        min_p=FLOAT32,
        repetition_penalty=FLOAT32,
        presence_penalty=FLOAT32,
        frequency_penalty=FLOAT32,
        logit_bias=st.dictionaries(UINT32, FLOAT32, max_size=4).map(lambda bias: tuple(sorted(bias.items()))),
        seed=UINT64,
        grammar=st.none() | st.builds(Grammar, st.sampled_from(GrammarKind), TEXT, TEXT),
    )


def token_logprobs() -> st.SearchStrategy[TokenLogprobs]:
    tops = st.lists(st.tuples(UINT32, FLOAT32), max_size=3)
    return st.builds(
        lambda logprob, top: TokenLogprobs(logprob, tuple(i for i, _ in top), tuple(p for _, p in top)), FLOAT32, tops
    )


def windows() -> st.SearchStrategy[DraftWindow]:
    nodes = st.lists(st.tuples(UINT32, UINT32, FLOAT32), max_size=8)
    return st.builds(
        lambda base, first_id, nodes, draft_ms, sent_ms: DraftWindow(
            base, first_id, [n[0] for n in nodes], [n[1] for n in nodes], [n[2] for n in nodes], draft_ms, sent_ms
        ),
        UINT32,
        UINT32,
        nodes,
        FLOAT32,
        FLOAT64,
    )


def traces() -> st.SearchStrategy[TraceContext]:
    return st.builds(TraceContext, TEXT, TEXT)


def draft_opens() -> st.SearchStrategy[DraftOpen]:
    return st.builds(
        DraftOpen,
        session_id=TEXT,
        token_ids=UINT32S,
        num_prompt_tokens=UINT32,
        sampling=samplings(),
        max_run_ahead=UINT32,
        tree_width=UINT32,
        max_length=UINT32,
        vocab_size=UINT32,
        trace=traces(),
        cache_salt=TEXT,
    )


def verify_opens() -> st.SearchStrategy[VerifyOpen]:
    return st.builds(
        VerifyOpen,
        session_id=TEXT,
        token_ids=UINT32S,
        num_prompt_tokens=UINT32,
        sampling=samplings(),
        max_length=UINT32,
        stop_token_ids=st.frozensets(UINT32, max_size=4),
        ignore_eos=st.booleans(),
        max_draft_tokens=UINT32,
        expect_drafts=st.booleans(),
        num_logprobs=st.none() | UINT32,
        time_left_ms=st.none() | UINT32,
        report_scored=st.booleans(),
        trace=traces(),
        cache_salt=TEXT,
    )


def verdicts() -> st.SearchStrategy[Verdict]:
    return st.builds(
        Verdict,
        position=UINT32,
        token_ids=UINT32S,
        num_accepted=UINT32,
        num_draft_tokens=UINT32,
        bonus=st.booleans(),
        num_stale_nodes=UINT32,
        probability_min=FLOAT32,
        verify_ms=FLOAT32,
        wait_ms=FLOAT32,
        logprobs=st.lists(token_logprobs(), max_size=3).map(tuple),
        scored=st.builds(ScoredNodes, UINT32S.map(tuple), UINT32S.map(tuple)),
        cutoff_ms=FLOAT64,
    )


def model_infos() -> st.SearchStrategy[ModelInfo]:
    return st.builds(
        ModelInfo,
        name=TEXT,
        model_type=TEXT,
        vocab_size=UINT32,
        tokenizer_sha256=TEXT,
        eos_token_ids=UINT32S.map(tuple),
        max_context=UINT32,
        max_sessions=UINT32,
        num_parameters=UINT64,
        memory_limit_bytes=UINT64,
        kv_cache_bytes=UINT64,
        dtype=TEXT,
        device=TEXT,
        protocol_version=UINT32,
        instance_id=TEXT,
        batch_invariant=st.booleans(),
        attention=TEXT,
        forward_pass=TEXT,
        token_choice=TEXT,
        not_taken=st.lists(TEXT, max_size=3).map(tuple),
        weights=TEXT,
        kv_cache_dtype=TEXT,
        draft_model=TEXT,
        unproven=TEXT,
    )


COMMITMENTS = st.builds(Commitment, UINT32, UINT32S, st.booleans(), FLOAT32, FLOAT32, FLOAT64)
OPENEDS = st.builds(Opened, UINT32)
FINISHES = st.builds(VerifyFinished, st.sampled_from(FinishReason))

DRAFT_COMMAND = (draft_opens() | COMMITMENTS, wire.encode_draft_command, wire.decode_draft_command)
DRAFT_EVENT = (OPENEDS | windows(), wire.encode_draft_event, wire.decode_draft_event)
VERIFY_COMMAND = (
    verify_opens() | windows() | st.just(EndDrafts()),
    wire.encode_verify_command,
    wire.decode_verify_command,
)
VERIFY_EVENT = (OPENEDS | verdicts() | FINISHES, wire.encode_verify_event, wire.decode_verify_event)
MODEL_INFO = (model_infos(), wire.encode_model_info, wire.decode_model_info)
SAMPLING = (samplings(), wire.encode_sampling, wire.decode_sampling)
TOKEN_LOGPROBS = (token_logprobs(), wire.encode_token_logprobs, wire.decode_token_logprobs)
TRACE = (traces(), wire.encode_trace, wire.decode_trace)
CONVERSIONS = [DRAFT_COMMAND, DRAFT_EVENT, VERIFY_COMMAND, VERIFY_EVENT, MODEL_INFO, SAMPLING, TOKEN_LOGPROBS, TRACE]


@pytest.mark.parametrize(("values", "encode", "decode"), CONVERSIONS)
@given(data=st.data())
def test_a_value_survives_the_wire(
    values: st.SearchStrategy[Any], encode: Callable[[Any], Message], decode: Callable[[Any], Any], data: st.DataObject
) -> None:
    value = data.draw(values)
    message = encode(value)
    assert decode(type(message).FromString(message.SerializeToString())) == value


@pytest.mark.parametrize(
    ("message_type", "decode"),
    [
        (draft_pb2.DraftCommand, wire.decode_draft_command),
        (draft_pb2.DraftEvent, wire.decode_draft_event),
        (verify_pb2.VerifyCommand, wire.decode_verify_command),
        (verify_pb2.VerifyEvent, wire.decode_verify_event),
        (common_pb2.ModelInfo, wire.decode_model_info),
    ],
)
@given(raw=st.binary(max_size=200))
def test_random_bytes_are_refused_or_decoded(
    message_type: type[Message], decode: Callable[[Any], object], raw: bytes
) -> None:
    """gRPC turns a DecodeError into a status of its own; a ProtocolViolationError is ours. Nothing else may escape."""
    with contextlib.suppress(DecodeError, ProtocolViolationError):
        assert decode(message_type.FromString(raw)) is not None


@given(events=verify_opens() | windows(), cut=st.integers(0, 200), flipped=st.binary(min_size=1, max_size=4))
def test_damaged_messages_are_refused_or_decoded(events: VerifyOpen | DraftWindow, cut: int, flipped: bytes) -> None:
    raw = wire.encode_verify_command(events).SerializeToString()
    damaged = raw[:cut] + flipped + raw[cut + len(flipped) :]
    with contextlib.suppress(DecodeError, ProtocolViolationError):
        assert wire.decode_verify_command(verify_pb2.VerifyCommand.FromString(damaged)) is not None


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (wire.decode_draft_command, draft_pb2.DraftCommand()),
        (wire.decode_draft_event, draft_pb2.DraftEvent()),
        (wire.decode_verify_command, verify_pb2.VerifyCommand()),
        (wire.decode_verify_event, verify_pb2.VerifyEvent()),
    ],
)
def test_an_empty_message_is_refused_in_words(decode: Callable[[Any], object], message: Message) -> None:
    with pytest.raises(ProtocolViolationError, match=rf"{message.DESCRIPTOR.name} carries none of .*set exactly one"):
        decode(message)


@pytest.mark.parametrize("number", [0, 99])
def test_unspecified_and_unknown_enum_values_are_refused(number: int) -> None:
    finished = verify_pb2.VerifyEvent.FromString(
        verify_pb2.VerifyEvent(finished=verify_pb2.VerifyFinished(reason=number)).SerializeToString()  # pyright: ignore[reportArgumentType]
    )
    with pytest.raises(ProtocolViolationError, match=f"finish reason {number}"):
        wire.decode_verify_event(finished)
    with pytest.raises(ProtocolViolationError, match=f"token origin {number}"):
        wire.decode_token_origin(number)


def test_the_enums_are_complete() -> None:
    reasons = {wire.decode_finish_reason(wire.encode_finish_reason(reason)) for reason in FinishReason}
    assert reasons == set(FinishReason)
    assert len(common_pb2.FinishReason.keys()) == 1 + len(FinishReason)
    origins = {wire.decode_token_origin(wire.encode_token_origin(origin)) for origin in TokenOrigin}
    assert origins == set(TokenOrigin)
    assert len(generation_pb2.TokenOrigin.keys()) == 1 + len(TokenOrigin)


def test_unset_sampling_fields_take_the_documented_defaults() -> None:
    assert wire.decode_sampling(common_pb2.SamplingParams()) == SamplingParams()


def test_a_field_set_to_zero_is_not_unset() -> None:
    message = common_pb2.SamplingParams(repetition_penalty=0.0, top_p=0.0, seed=0)
    sampling = wire.decode_sampling(message)
    assert (sampling.repetition_penalty, sampling.top_p, sampling.seed) == (0.0, 0.0, 0)


def test_an_opening_without_sampling_or_trace_is_greedy_and_not_traced() -> None:
    opening = wire.decode_verify_command(verify_pb2.VerifyCommand(open=verify_pb2.VerifyOpen(token_ids=[1])))
    assert isinstance(opening, VerifyOpen)
    assert opening.sampling == SamplingParams()
    assert opening.trace == NOT_TRACED
    assert opening.num_logprobs is None


def test_no_protobuf_container_leaves_the_wire() -> None:
    window = wire.decode_drafted(wire.encode_drafted(DraftWindow(1, 1, [0], [5], [-0.5])))
    assert (type(window.parent_ids), type(window.token_ids), type(window.log_probs)) == (list, list, list)


def test_alternatives_without_their_log_probability_are_refused() -> None:
    with pytest.raises(ProtocolViolationError, match="one length"):
        wire.decode_token_logprobs(common_pb2.TokenLogprobs(logprob=-1.0, top_token_ids=[1, 2], top_logprobs=[-1.0]))
