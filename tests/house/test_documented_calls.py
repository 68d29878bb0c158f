"""What the documentation tells people to send is accepted: each call against the checks that a service would make."""

from __future__ import annotations

import ast
import asyncio
import json
import re
from dataclasses import asdict
from typing import Any, NamedTuple

from google.protobuf import json_format, symbol_database
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from tokenizers import Tokenizer

from coordinator.chat.template import ChatTemplate
from coordinator.config import CoordinatorConfig
from coordinator.request import settle
from coordinator.tokenizer import TargetTokenizer
from outrider.core.protocol.chat_prompt import ChatPrompt
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow, ModelInfo, VerifyOpen
from outrider.core.protocol.validation import RUN_AHEAD_MAX, check_draft_open, check_verify_open
from outrider.core.verify.session import VerifySession
from outrider.rpc import wire
from outrider.v1 import draft_pb2, generation_pb2, verify_pb2

from .pages import PAGES, ROOT, blocks, commands

BUNDLED = ModelInfo("target", "llama", 4096, "", (0,), 2048, 8, 0, "float32", "cpu", 1, "")
"""What the examples are sent to."""


class Example(NamedTuple):
    """A grpcurl call with data."""

    page: str
    method: str
    messages: list[Message]


def messages_of(data: str, method: str) -> list[Message]:
    """The JSON objects in `data` as messages of the type that the method takes, as grpcurl reads them."""
    service, name = method.split("/")
    descriptor = symbol_database.Default().pool.FindServiceByName(service).methods_by_name[name]
    found: list[Message] = []
    while data := data.lstrip():
        content, end = json.JSONDecoder().raw_decode(data)
        found.append(json_format.ParseDict(content, GetMessageClass(descriptor.input_type)()))
        data = data[end:]
    assert len(found) == 1 or (found and descriptor.client_streaming)
    return found


def examples() -> list[Example]:
    """Every grpcurl call with data in the documentation."""
    assert health_pb2.DESCRIPTOR.package == "grpc.health.v1"  # the import has registered it
    found: list[Example] = []
    for page, text in PAGES.items():
        for words, document in commands(text):
            if words[0] == "grpcurl" and {"-plaintext", "-d"} <= set(words):
                data = words[words.index("-d") + 1]
                method = next(word for word in words if re.fullmatch(r"[\w.]+\.\w+/\w+", word))
                found.append(Example(page, method, messages_of(document if data == "@" else data, method)))
    return found


def test_what_grpcurl_is_told_to_send_is_accepted() -> None:
    tokenizer = Tokenizer.from_file(str(ROOT / "models" / "target" / "tokenizer.json"))
    found = examples()
    for page, method, messages in found:
        match messages[0]:
            case generation_pb2.GenerateRequest() as request:
                prompt, options = wire.decode_generate_request(request)
                if isinstance(prompt, ChatPrompt):
                    prompt = ChatTemplate({"default": "{{ messages[-1].content }}"}).render(**asdict(prompt))
                asyncio.run(settle(prompt, options, CoordinatorConfig(), BUNDLED, TargetTokenizer(tokenizer)))
            case draft_pb2.DraftCommands():
                _check_draft_session(messages, tokenizer)
            case verify_pb2.VerifyCommands():
                _check_verify_session(messages, tokenizer)
            case _:
                assert isinstance(messages[0], health_pb2.HealthCheckRequest), (page, method)
    methods = {method.rpartition(".")[2] for page, method, _ in found if page == "docs/calling.md"}
    assert methods == {"GenerationService/Generate", "DraftService/Draft", "VerifyService/Verify", "Health/Check"}


def _commands(messages: list[Any]) -> list[Any]:
    """Those of the one session of a stream."""
    found = [command for message in messages for command in message.commands]
    assert {command.session for command in found} == {0}
    return found


def _check_draft_session(messages: list[Message], tokenizer: Tokenizer) -> None:
    opening, *commitments = map(wire.decode_draft_command, _commands(messages))
    assert isinstance(opening, DraftOpen)
    check_draft_open(opening, BUNDLED.vocab_size, BUNDLED.max_context)
    assert opening.token_ids == tokenizer.encode("def main(").ids
    end = len(opening.token_ids)
    for commitment in commitments:
        assert isinstance(commitment, Commitment)
        assert commitment.position == end, "the example leaves a gap"
        end += len(commitment.token_ids)
    assert [commitment.rollback for commitment in commitments] == [False, True]


def _check_verify_session(messages: list[Message], tokenizer: Tokenizer) -> None:
    opening, *windows = map(wire.decode_verify_command, _commands(messages))
    assert isinstance(opening, VerifyOpen)
    check_verify_open(opening, BUNDLED.vocab_size, BUNDLED.max_context)
    assert opening.token_ids == tokenizer.encode("def main(").ids
    session = VerifySession(opening, vocab_size=BUNDLED.vocab_size, eos_token_ids=(), max_live_nodes=RUN_AHEAD_MAX)
    for window in windows:
        assert isinstance(window, DraftWindow)
        assert len(session.graft(window).added) == len(window)
    assert windows


def test_python_imports_what_there_is() -> None:
    found = [block for page in PAGES.values() for block in blocks(page, "python")]
    assert found
    for block in found:
        imports = [node for node in ast.parse(block).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), "documentation", "exec"), {})
