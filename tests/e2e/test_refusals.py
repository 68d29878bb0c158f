"""Bad input gets a clear status with field violations, and harms nobody else."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
import torch
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from outrider.client import Started, Tokens
from outrider.core.protocol.errors import (
    InvalidRequestError,
    ModelMismatchError,
    OutriderError,
    ProtocolViolationError,
    SlotsExhaustedError,
    UnsupportedModelError,
)
from outrider.core.protocol.messages import DraftOpen, DraftWindow, VerifyFinished, VerifyOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.rpc import wire
from outrider.rpc.channels import MESSAGE_BYTES_MAX, open_channel
from outrider.rpc.session_failure import decode_failure
from outrider.v1 import (
    common_pb2,
    draft_pb2,
    draft_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    verify_pb2,
    verify_pb2_grpc,
)
from outrider.v1.verify_pb2 import VerifyCommand
from tests.e2e.answers import ask
from tests.e2e.stack import RunningWorker, Stack, coordinator, load_tiny, save_tiny, stack, worker
from tests.engine.tiny_models import VOCAB_SIZE, build

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("forked")]
PROMPT = [1, 2, 3]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return (
        save_tiny(build("llama", layers=2), root / "target"),
        save_tiny(build("llama", layers=1, seed=5), root / "draft"),
    )


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pair(folders: tuple[Path, Path]) -> AsyncIterator[Stack]:
    async with stack(load_tiny(folders[0]), load_tiny(folders[1])) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def drafter(folders: tuple[Path, Path]) -> AsyncIterator[RunningWorker]:
    async with worker(load_tiny(folders[1]), draft=True) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def verifier(folders: tuple[Path, Path]) -> AsyncIterator[RunningWorker]:
    async with worker(load_tiny(folders[0])) as running:
        yield running


def request(**fields: Any) -> generation_pb2.GenerateRequest:
    return generation_pb2.GenerateRequest(
        **{"token_ids": generation_pb2.TokenIds(ids=PROMPT), "max_tokens": 4, **fields}
    )


def sampled(**fields: Any) -> generation_pb2.GenerateRequest:
    return request(sampling=common_pb2.SamplingParams(**fields))


def tokens(*ids: int) -> generation_pb2.TokenIds:
    return generation_pb2.TokenIds(ids=ids)


BAD_REQUESTS = {
    "no prompt": (generation_pb2.GenerateRequest(), "prompt"),
    "empty text": (generation_pb2.GenerateRequest(text=""), "text"),
    "no token ids": (request(token_ids=tokens()), "token_ids.ids"),
    "prompt over the context": (request(token_ids=tokens(*[1] * 256)), "token_ids.ids"),
    "token id out of range": (request(token_ids=tokens(1, VOCAB_SIZE)), "token_ids.ids"),
    "huge token id": (request(token_ids=tokens(2**32 - 1)), "token_ids.ids"),
    "negative temperature": (sampled(temperature=-0.1), "sampling.temperature"),
    "temperature not a number": (sampled(temperature=math.nan), "sampling.temperature"),
    "infinite temperature": (sampled(temperature=math.inf), "sampling.temperature"),
    "top_p of zero": (sampled(top_p=0.0), "sampling.top_p"),
    "top_p not a number": (sampled(top_p=math.nan), "sampling.top_p"),
    "min_p above one": (sampled(min_p=1.5), "sampling.min_p"),
    "repetition penalty of zero": (sampled(repetition_penalty=0.0), "sampling.repetition_penalty"),
    "infinite presence penalty": (sampled(presence_penalty=-math.inf), "sampling.presence_penalty"),
    "frequency penalty not a number": (sampled(frequency_penalty=math.nan), "sampling.frequency_penalty"),
    "biased token out of range": (sampled(logit_bias={VOCAB_SIZE: 1.0}), "sampling.logit_bias"),
    "bias not a number": (sampled(logit_bias={1: math.nan}), "sampling.logit_bias"),
    "no tokens wanted": (request(max_tokens=0), "max_tokens"),
    "huge max_tokens": (request(max_tokens=2**32 - 1), "max_tokens"),
    "empty stop string": (request(stop=[""]), "stop"),
    "long stop string": (request(stop=["x" * 257]), "stop"),
    "many stop strings": (request(stop=["x"] * 17), "stop"),
    "stop token out of range": (request(stop_token_ids=[VOCAB_SIZE]), "stop_token_ids"),
    "no completions": (request(num_completions=0), "num_completions"),
    "many completions": (request(num_completions=17), "num_completions"),
    "many log-probabilities": (request(num_logprobs=21), "num_logprobs"),
    "tree too wide": (request(speculation=generation_pb2.SpeculationParams(tree_width=9)), "speculation.tree_width"),
    "many draft tokens": (
        request(speculation=generation_pb2.SpeculationParams(max_draft_tokens=999)),
        "speculation.max_draft_tokens",
    ),
}


async def refusal(call: grpc.aio.UnaryStreamCall) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in call:
            pass
    return raised.value


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_a_bad_request_names_its_field(pair: Stack, name: str) -> None:
    message, field = BAD_REQUESTS[name]
    async with open_channel(pair.address) as channel:
        error = await refusal(generation_pb2_grpc.GenerationServiceStub(channel).Generate(message))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(error)
    bad_request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad_request) for detail in status.details)
    assert field in [violation.field for violation in bad_request.field_violations]
    assert all(violation.description for violation in bad_request.field_violations)


async def test_a_bad_request_does_not_disturb_its_neighbour(pair: Stack) -> None:
    alone = await ask(pair.client, PROMPT, max_tokens=100, ignore_eos=True)
    async with open_channel(pair.address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        neighbour = asyncio.create_task(ask(pair.client, PROMPT, max_tokens=100, ignore_eos=True))
        for message, _ in BAD_REQUESTS.values():
            await refusal(stub.Generate(message))
    assert (await neighbour).token_ids == alone.token_ids


async def test_an_oversized_message_is_refused_and_the_service_lives(pair: Stack) -> None:
    async with grpc.aio.insecure_channel(
        pair.address, options=[("grpc.max_send_message_length", 2 * MESSAGE_BYTES_MAX)]
    ) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        error = await refusal(stub.Generate(generation_pb2.GenerateRequest(text="x" * (MESSAGE_BYTES_MAX + 1))))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await ask(pair.client, PROMPT, max_tokens=4)).token_ids


def draft_open(**changes: Any) -> draft_pb2.DraftCommand:
    fields: dict[str, Any] = {
        "session_id": "by hand",
        "token_ids": PROMPT,
        "num_prompt_tokens": 3,
        "sampling": SamplingParams(),
        "max_run_ahead": 4,
        "tree_width": 1,
        "max_length": 64,
        "vocab_size": VOCAB_SIZE,
    }
    return wire.encode_draft_command(DraftOpen(**{**fields, **changes}))


def verify_open(**changes: Any) -> VerifyCommand:
    fields: dict[str, Any] = {
        "session_id": "by hand",
        "token_ids": PROMPT,
        "num_prompt_tokens": 3,
        "sampling": SamplingParams(),
        "max_length": 240,
        "max_draft_tokens": 4,
        "ignore_eos": True,
    }
    return wire.encode_verify_command(VerifyOpen(**{**fields, **changes}))


def commit(position: int, *token_ids: int) -> draft_pb2.DraftCommand:
    return draft_pb2.DraftCommand(commit=draft_pb2.Commit(position=position, token_ids=token_ids))


def drafted(**fields: Any) -> VerifyCommand:
    window = {"base": 2, "first_id": 1, "parent_ids": [0], "token_ids": [5], "log_probs": [-0.5], **fields}
    return wire.encode_verify_command(DraftWindow(**window))


BAD, NEIGHBOUR = 1, 0
"""Numbers of two sessions on one stream."""


async def refused_beside(call: Any, neighbour: Any, commands: list[Any], message_type: type[Any]) -> list[Any]:
    """Sends an opening and, for another session, commands of which one is refused. Returns what comes until then."""
    await call.write(message_type(commands=[neighbour]))
    for command in commands:
        command.session = BAD
        await call.write(message_type(commands=[command]))
    messages: list[Any] = []
    while not messages or not messages[-1].failed:
        messages.append(await call.read())
        assert messages[-1] is not grpc.aio.EOF
    return messages


def failures(messages: list[Any]) -> list[tuple[int, type[OutriderError]]]:
    return [(failed.session, type(decode_failure(failed))) for message in messages for failed in message.failed]


BAD_DRAFT_STREAMS = {
    "a commit before open": ([commit(3, 1)], ProtocolViolationError),
    "an empty command": ([draft_pb2.DraftCommand()], ProtocolViolationError),
    "open twice": ([draft_open(), draft_open()], ProtocolViolationError),
    "a gap in the line": ([draft_open(), commit(9, 1)], ProtocolViolationError),
    "a contradiction": ([draft_open(), commit(1, 9, 9)], ProtocolViolationError),
    "a committed id out of range": ([draft_open(), commit(3, VOCAB_SIZE)], ProtocolViolationError),
    "an empty line": ([draft_open(token_ids=[])], InvalidRequestError),
    "a line id out of range": ([draft_open(token_ids=[1, 2, VOCAB_SIZE])], InvalidRequestError),
    "no credit": ([draft_open(max_run_ahead=0)], InvalidRequestError),
    "endless credit": ([draft_open(max_run_ahead=100_000)], InvalidRequestError),
    "a width beyond its bound": ([draft_open(tree_width=9)], InvalidRequestError),
    "beyond the context": ([draft_open(max_length=100_000)], InvalidRequestError),
    "no number as temperature": (
        [draft_open(sampling=SamplingParams(temperature=math.nan))],
        InvalidRequestError,
    ),
}


@pytest.mark.parametrize("name", BAD_DRAFT_STREAMS)
async def test_a_bad_draft_stream_ends_alone(drafter: RunningWorker, name: str) -> None:
    commands, error = BAD_DRAFT_STREAMS[name]
    async with open_channel(drafter.address) as channel:
        stub = draft_pb2_grpc.DraftServiceStub(channel)
        call = stub.Draft()
        messages = await refused_beside(call, draft_open(), commands, draft_pb2.DraftCommands)
        while sum(len(e.drafted.token_ids) for m in messages for e in m.events if e.session == NEIGHBOUR) < 4:
            messages.append(await call.read())
        assert failures(messages) == [(BAD, error)]
        call.cancel()


BAD_VERIFY_STREAMS = {
    "drafts before open": ([drafted()], ProtocolViolationError),
    "an empty command": ([VerifyCommand()], ProtocolViolationError),
    "open twice": ([verify_open(), verify_open()], ProtocolViolationError),
    "an unknown parent": ([verify_open(), drafted(parent_ids=[7])], ProtocolViolationError),
    "a node as its own parent": ([verify_open(), drafted(parent_ids=[1])], ProtocolViolationError),
    "a draft id out of range": ([verify_open(), drafted(token_ids=[VOCAB_SIZE])], ProtocolViolationError),
    "a skipped node id": ([verify_open(), drafted(first_id=2)], ProtocolViolationError),
    "a base in the future": ([verify_open(), drafted(base=200)], ProtocolViolationError),
    "lists of unequal length": ([verify_open(), drafted(log_probs=[])], ProtocolViolationError),
    "no number as log-probability": (
        [verify_open(), drafted(log_probs=[math.nan])],
        ProtocolViolationError,
    ),
    "a window beyond its bound": (
        [verify_open(), drafted(parent_ids=[0] * 257, token_ids=[1] * 257, log_probs=[-1.0] * 257)],
        ProtocolViolationError,
    ),
    "an empty line": ([verify_open(token_ids=[])], InvalidRequestError),
    "a negative temperature": (
        [verify_open(sampling=SamplingParams(temperature=-1.0))],
        InvalidRequestError,
    ),
    "too many draft tokens": ([verify_open(max_draft_tokens=100_000)], InvalidRequestError),
}


@pytest.mark.parametrize("name", BAD_VERIFY_STREAMS)
async def test_a_bad_verify_stream_ends_alone(verifier: RunningWorker, name: str) -> None:
    commands, error = BAD_VERIFY_STREAMS[name]
    async with open_channel(verifier.address) as channel:
        stub = verify_pb2_grpc.VerifyServiceStub(channel)
        call = stub.Verify()
        messages = await refused_beside(call, verify_open(), commands, verify_pb2.VerifyCommands)
        while NEIGHBOUR not in messages[-1].ended:
            messages.append(await call.read())
        assert failures(messages) == [(BAD, error)]
        events = [event for message in messages for event in message.events if event.session == NEIGHBOUR]
        assert isinstance(wire.decode_verify_event(events[-1]), VerifyFinished)
        call.cancel()


async def test_models_of_different_vocabularies_are_refused_in_words(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    stranger = save_tiny(build("llama", layers=1), tmp_path / "stranger")
    tokenizer = (stranger / "tokenizer.json").read_text()
    (stranger / "tokenizer.json").write_text(tokenizer.replace('"1": 1,', '"1": 2,').replace('"2": 2,', '"2": 1,'))
    async with stack(load_tiny(folders[0]), load_tiny(stranger)) as running:
        with pytest.raises(ModelMismatchError, match="different vocabularies"):
            await ask(running.client, PROMPT, max_tokens=4)
        alone = await ask(running.client, PROMPT, max_tokens=4, speculate=False)
        assert alone.token_ids
        assert "different vocabularies" in (await running.client.server_info()).target_only_reason


async def test_a_coordinator_without_verifier_says_so() -> None:
    async with (
        coordinator("127.0.0.1:1", "", wait_for_target=False) as running,
        open_channel(running.address) as channel,
    ):
        error = await refusal(generation_pb2_grpc.GenerationServiceStub(channel).Generate(request()))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "verify service" in error.details()


def without_safetensors(folder: Path) -> None:
    weights = folder / "model.safetensors"
    torch.save({}, folder / "pytorch_model.bin")
    weights.unlink()


BAD_FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickled weights only": (without_safetensors, "pickled weights only"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), r"no config\.json"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), r"no tokenizer\.json"),
    "unknown architecture": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "never_heard_of"}'),
        "unknown",
    ),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
async def test_a_bad_model_folder_is_refused_in_words(tmp_path: Path, name: str) -> None:
    spoil, words = BAD_FOLDERS[name]
    folder = save_tiny(build("llama", layers=1), tmp_path / "model")
    spoil(folder)
    with pytest.raises(UnsupportedModelError, match=words):
        load_tiny(folder)


async def test_a_worker_that_cannot_load_its_model_ends_with_a_sentence(tmp_path: Path) -> None:
    folder = save_tiny(build("llama", layers=1), tmp_path / "model")
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "verify_service", f"--model={folder}", "--listen=127.0.0.1:0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    *_, last = output.decode().splitlines()
    assert process.returncode == 1
    assert json.loads(last)["event"] == "cannot serve"
    assert "git lfs pull" in json.loads(last)["reason"]
    assert "Traceback" not in output.decode()


async def test_a_missing_model_folder_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no model folder"):
        load_tiny(tmp_path / "nothing")


async def test_a_port_in_use_is_said_in_words(verifier: RunningWorker) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "draft_service", "--model=ngram", f"--listen={verifier.address}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 1
    assert "in use" in output.decode()
    assert "--listen" in output.decode()
    assert "Traceback" not in output.decode()


async def test_every_slot_taken_is_said_and_passes(folders: tuple[Path, Path]) -> None:
    async with worker(load_tiny(folders[0], max_sessions=1)) as verify, coordinator(verify.address, "") as running:
        async with aclosing(running.client.generate(PROMPT, max_tokens=240, ignore_eos=True)) as holder:
            assert isinstance(await anext(holder), Started)
            assert isinstance(await anext(holder), Tokens)
            with pytest.raises(SlotsExhaustedError, match="--max-sessions"):
                await ask(running.client, PROMPT, max_tokens=2)
        await verify.all_slots_free()
        assert (await ask(running.client, PROMPT, max_tokens=2)).token_ids
