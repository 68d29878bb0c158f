"""The public request and stream on the wire: both directions give back what was there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.coordinate.events import Finished, GenerationMode, Started, Timings, Token, Tokens, Usage
from outrider.core.coordinate.round import DraftStep, NodeFate, Round, RoundNode
from outrider.core.coordinate.server_info import Replica, ServerInfo
from outrider.core.coordinate.statistics import COUNTERS, Speculation, SpeculationCounts
from outrider.core.protocol.chat_prompt import ChatPrompt
from outrider.core.protocol.errors import InvalidRequestError, ProtocolViolationError
from outrider.core.protocol.messages import FinishReason, TokenOrigin, WorkerLoad
from outrider.core.protocol.options import DEFAULT_OPTIONS, GenerationOptions, OptionFields
from outrider.core.protocol.resume import ReceivedCompletion, Resume
from outrider.core.protocol.sampling import SamplingParams
from outrider.rpc import wire
from outrider.v1 import generation_pb2 as pb
from tests.rpc.test_wire import FLOAT32, TEXT, UINT32, UINT32S, UINT64, model_infos, samplings, token_logprobs


def options() -> st.SearchStrategy[GenerationOptions]:
    return st.builds(
        GenerationOptions,
        add_special_tokens=st.booleans(),
        sampling=samplings(),
        max_tokens=st.none() | UINT32,
        stop=st.lists(TEXT, max_size=3).map(tuple),
        stop_token_ids=UINT32S.map(tuple),
        ignore_eos=st.booleans(),
        num_logprobs=st.none() | UINT32,
        speculate=st.booleans(),
        max_draft_tokens=st.none() | UINT32,
        tree_width=st.none() | UINT32,
        report_rounds=st.booleans(),
        num_completions=st.none() | UINT32,
        resume=st.none() | resumes(),
    )


def resumes() -> st.SearchStrategy[Resume]:
    received = st.builds(
        ReceivedCompletion,
        token_ids=UINT32S,
        finished=st.booleans(),
        num_cached_prompt_tokens=st.none() | UINT32,
    )
    return st.builds(Resume, st.lists(received, max_size=3).map(tuple), TEXT)


def speculations() -> st.SearchStrategy[Speculation]:
    return st.builds(
        Speculation,
        **{counter.field: UINT32 for counter in COUNTERS},
        acceptance_length=FLOAT32,
        acceptance_histogram=UINT32S.map(tuple),
    )


def loads() -> st.SearchStrategy[WorkerLoad]:
    return st.builds(
        WorkerLoad, TEXT, UINT32, UINT32, UINT32, UINT32, UINT32, FLOAT32, UINT64, UINT64, UINT64, st.booleans()
    )


STARTED = st.builds(Started, TEXT, UINT32S.map(tuple), UINT64, TEXT, st.booleans(), TEXT)
TOKEN = st.builds(Token, UINT32, TEXT, st.sampled_from(TokenOrigin), st.none() | token_logprobs())
TOKENS = st.builds(
    Tokens,
    position=UINT32,
    text=TEXT,
    tokens=st.lists(TOKEN, max_size=4).map(tuple),
    rolled_back=st.booleans(),
    num_draft_tokens=UINT32,
    completion=UINT32,
    num_cached_prompt_tokens=UINT32,
)
FINISHED = st.builds(
    Finished,
    reason=st.sampled_from(FinishReason),
    mode=st.sampled_from(GenerationMode),
    mode_reason=TEXT,
    text=TEXT,
    usage=st.builds(Usage, UINT32, UINT32, UINT32),
    speculation=speculations(),
    timings=st.builds(Timings, FLOAT32, FLOAT32, FLOAT32, FLOAT32, FLOAT32),
    completion=UINT32,
)
ROUND = st.builds(
    Round,
    completion=UINT32,
    number=UINT32,
    position=UINT32,
    at_ms=FLOAT32,
    verify_ms=FLOAT32,
    wait_ms=FLOAT32,
    verifier=UINT32,
    nodes=st.lists(
        st.builds(RoundNode, UINT32, UINT32, TEXT, FLOAT32, st.booleans(), st.booleans(), st.sampled_from(NodeFate)),
        max_size=3,
    ).map(tuple),
    num_accepted_drafts=UINT32,
    num_stale_nodes=UINT32,
    rolled_back=st.booleans(),
    draft_steps=st.lists(st.builds(DraftStep, FLOAT32, FLOAT32, UINT32, UINT32), max_size=3).map(tuple),
    mode_reason=TEXT,
)
REPLICA = st.builds(
    Replica, TEXT, TEXT, st.booleans(), TEXT, st.none() | model_infos(), st.none() | loads(), num_own_sessions=UINT32
)
SERVER_INFO = st.builds(
    ServerInfo,
    version=TEXT,
    protocol_version=UINT32,
    target=model_infos(),
    draft=st.none() | model_infos(),
    target_only_reason=TEXT,
    num_running=UINT32,
    replicas=st.lists(REPLICA, max_size=2).map(tuple),
)


@pytest.mark.parametrize(
    ("values", "encode", "decode"),
    [
        (STARTED | TOKENS | ROUND | FINISHED, wire.encode_event, wire.decode_event),
        (SERVER_INFO, wire.encode_server_info, wire.decode_server_info),
    ],
)
@given(data=st.data())
def test_a_value_survives_the_wire(
    values: st.SearchStrategy[Any], encode: Callable[[Any], Message], decode: Callable[[Any], Any], data: st.DataObject
) -> None:
    value = data.draw(values)
    message = encode(value)
    assert decode(type(message).FromString(message.SerializeToString())) == value


def chat_prompts() -> st.SearchStrategy[ChatPrompt]:
    messages = st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), max_size=3)
    kwargs = st.dictionaries(TEXT, st.none() | st.booleans() | TEXT | st.lists(UINT32, max_size=2), max_size=2)

    def prompt(continues: bool) -> st.SearchStrategy[ChatPrompt]:
        return st.builds(
            ChatPrompt,
            messages=messages,
            add_generation_prompt=st.just(not continues),
            continue_final_message=st.just(continues),
            chat_template_kwargs=kwargs,
        )

    return st.booleans().flatmap(prompt)


@given(prompt=TEXT | UINT32S | chat_prompts(), wanted=options())
def test_a_request_survives_the_wire(prompt: str | list[int] | ChatPrompt, wanted: GenerationOptions) -> None:
    raw = wire.encode_generate_request(prompt, wanted).SerializeToString()
    assert wire.decode_generate_request(pb.GenerateRequest.FromString(raw)) == (prompt, wanted)


@given(sampling=samplings())
def test_a_seed_to_be_drawn_is_not_sent(sampling: SamplingParams) -> None:
    message = wire.encode_generate_request("x", GenerationOptions(sampling=sampling, draw_seed=True))
    assert not message.sampling.HasField("seed")
    _, found = wire.decode_generate_request(message)
    assert found.draw_seed


def test_of_a_request_that_says_nothing_the_server_draws_the_seed() -> None:
    prompt, found = wire.decode_generate_request(pb.GenerateRequest(text="x"))
    assert (prompt, found) == ("x", GenerationOptions(draw_seed=True))
    assert not DEFAULT_OPTIONS.draw_seed


def test_a_request_without_a_prompt_names_the_field() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        wire.decode_generate_request(pb.GenerateRequest(max_tokens=3))
    assert [violation.field for violation in refused.value.violations] == ["prompt"]


@pytest.mark.parametrize(
    "prompt",
    [
        ChatPrompt(messages=[{"role": "user", "content": "a"}], tools=[{"type": "function"}]),
        ChatPrompt(messages=[{"role": "user", "content": "a"}], add_generation_prompt=False),
        ChatPrompt(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}]}]),
        ChatPrompt(messages=[{"role": "user", "content": "a", "name": "b"}]),
        ChatPrompt(messages=[], chat_template_kwargs={"a": {1}}),
    ],
)
def test_a_conversation_that_no_message_can_hold_is_refused(prompt: ChatPrompt) -> None:
    with pytest.raises(InvalidRequestError, match="request: cannot be sent"):
        wire.encode_generate_request(prompt, DEFAULT_OPTIONS)


@pytest.mark.parametrize("value", ["{", "", "[" * 100_000])
def test_a_variable_of_a_template_that_is_no_json_names_the_field(value: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"chat\.chat_template_kwargs: must be JSON"):
        wire.decode_generate_request(pb.GenerateRequest(chat=pb.ChatPrompt(chat_template_kwargs={"a": value})))


def test_an_empty_list_of_ids_is_a_prompt_to_be_refused_by_its_own_field() -> None:
    prompt, _ = wire.decode_generate_request(pb.GenerateRequest(token_ids=pb.TokenIds()))
    assert prompt == []


@pytest.mark.parametrize(
    ("message_type", "decode"),
    [
        (pb.GenerateRequest, wire.decode_generate_request),
        (pb.GenerateResponse, wire.decode_event),
        (pb.GetServerInfoResponse, wire.decode_server_info),
        (pb.GetTraceResponse, wire.decode_request_trace),
    ],
)
@given(raw=st.binary(max_size=200))
def test_random_bytes_are_refused_or_decoded(
    message_type: type[Message], decode: Callable[[Any], object], raw: bytes
) -> None:
    with contextlib.suppress(DecodeError, ProtocolViolationError, InvalidRequestError):
        assert decode(message_type.FromString(raw)) is not None


def test_the_modes_are_complete() -> None:
    assert {f"GENERATION_MODE_{mode.name}" for mode in GenerationMode} | {"GENERATION_MODE_UNSPECIFIED"} == set(
        pb.GenerationMode.keys()
    )


def test_the_fates_are_complete() -> None:
    assert {f"NODE_FATE_{fate.name}" for fate in NodeFate} | {"NODE_FATE_UNSPECIFIED"} == set(pb.NodeFate.keys())


def test_every_count_stands_in_the_table_and_in_the_message() -> None:
    counted = [counter.field for counter in COUNTERS]
    assert sorted(counted) == sorted(field.name for field in fields(SpeculationCounts))
    described = pb.SpeculationStatistics.DESCRIPTOR.fields_by_name
    assert set(described) - set(counted) == {"acceptance_length", "acceptance_histogram"}
    assert {counter.whole for counter in COUNTERS if counter.whole} <= set(counted)
    metrics = [counter.metric for counter in COUNTERS if counter.metric]
    assert len(set(metrics)) == len(metrics)


def test_the_keyword_arguments_are_the_fields_of_the_options() -> None:
    assert OptionFields.__annotations__.keys() == {field.name for field in fields(GenerationOptions)}
    assert {name: each.__forward_arg__ for name, each in OptionFields.__annotations__.items()} == {
        field.name: field.type for field in fields(GenerationOptions)
    }
