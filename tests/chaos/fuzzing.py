"""Every RPC of every service gets nonsense, and answers with a status; a good request is answered after it."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

import grpc
import grpc.aio
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from outrider.rpc.channels import open_channel
from outrider.v1 import common_pb2, draft_pb2, generation_pb2, verify_pb2

from .nonsense import Nonsense

FILES: Sequence[FileDescriptor] = (
    generation_pb2.DESCRIPTOR,
    draft_pb2.DESCRIPTOR,
    verify_pb2.DESCRIPTOR,
    health_pb2.DESCRIPTOR,
    reflection_pb2.DESCRIPTOR,
)
"""What the services offer: their own schema, health and reflection."""

ANSWER_SECONDS_MAX = 60.0
"""Longest that any RPC takes to answer, on a machine that is busy with much else."""

CALLS_AT_A_TIME = 16

STREAM_MESSAGES_MAX = 16
"""Most messages on one stream."""

SOUND_RATE = 0.5
"""How often a message of a stream is a good one: the first that is refused is the last that is read."""

OWN_WEIGHT = 6
"""How much more often one of the services' own RPCs is called than one of health or reflection, which all offer."""

FORBIDDEN = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED})
"""What nonsense must not lead to: a fault of the service, or no answer."""

_SPOILED = "Internal error from Core"
"""What grpcio's client says, over the status that the server sent, when it was still writing; see `rpc/streams.py`."""

_INTERNALS = re.compile(r"Traceback|File \"|<class|\w+\.py\b|object at 0x")
"""What no status tells."""

PROMPT = (1, 2, 3)


def good_messages(vocab_size: int) -> Mapping[str, Sequence[Message]]:
    """Messages that services take, by type: what nonsense is made of."""
    sampling = common_pb2.SamplingParams(temperature=0.8, top_p=0.9, top_k=5, seed=3, logit_bias={4: 1.0})
    drafted = common_pb2.Drafted(base=2, first_id=1, parent_ids=[0, 1], token_ids=[4, 5], log_probs=[-0.1, -0.5])
    commit = {"position": 3, "token_ids": [4], "verify_ms": 1.0}
    verify_open = verify_pb2.VerifyOpen(
        token_ids=PROMPT, num_prompt_tokens=3, max_length=40, max_draft_tokens=8, expect_drafts=True, sampling=sampling
    )
    draft_open = draft_pb2.DraftOpen(
        token_ids=PROMPT, num_prompt_tokens=3, max_run_ahead=12, tree_width=2, max_length=40, vocab_size=vocab_size
    )
    chat = generation_pb2.ChatPrompt(messages=[generation_pb2.ChatMessage(role="user", content="0123")])
    good: Sequence[Message] = (
        generation_pb2.GenerateRequest(text="123", max_tokens=8, stop=["9"], sampling=sampling),
        generation_pb2.GenerateRequest(
            token_ids=generation_pb2.TokenIds(ids=PROMPT),
            max_tokens=8,
            num_logprobs=2,
            num_completions=2,
            speculation=generation_pb2.SpeculationParams(max_draft_tokens=4, tree_width=2),
        ),
        generation_pb2.GenerateRequest(chat=chat, max_tokens=4),
        verify_pb2.VerifyCommands(commands=[verify_pb2.VerifyCommand(open=verify_open)]),
        verify_pb2.VerifyCommands(commands=[verify_pb2.VerifyCommand(open=verify_open, session=1)]),
        verify_pb2.VerifyCommands(commands=[verify_pb2.VerifyCommand(drafted=drafted)]),
        verify_pb2.VerifyCommands(
            commands=[verify_pb2.VerifyCommand(drafts_ended=verify_pb2.DraftsEnded(), session=1)]
        ),
        verify_pb2.VerifyCommands(closed=[0]),
        draft_pb2.DraftCommands(commands=[draft_pb2.DraftCommand(open=draft_open)]),
        draft_pb2.DraftCommands(commands=[draft_pb2.DraftCommand(open=draft_open, session=1)]),
        draft_pb2.DraftCommands(commands=[draft_pb2.DraftCommand(commit=draft_pb2.Commit(**commit))]),
        draft_pb2.DraftCommands(commands=[draft_pb2.DraftCommand(rollback=draft_pb2.Rollback(**commit), session=1)]),
        draft_pb2.DraftCommands(closed=[1]),
        common_pb2.GetSpansRequest(request_id="0123456789abcdef0123456789abcdef"),
        health_pb2.HealthCheckRequest(service="outrider.v1.DraftService"),
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="outrider.v1.DraftService"),
    )
    by_type: dict[str, list[Message]] = {}
    for message in good:
        by_type.setdefault(message.DESCRIPTOR.full_name, []).append(message)
    return by_type


class Method(NamedTuple):
    """One RPC at one server."""

    address: str
    descriptor: MethodDescriptor

    @property
    def path(self) -> str:
        """As HTTP/2 names it."""
        return f"/{self.descriptor.containing_service.full_name}/{self.descriptor.name}"

    @property
    def is_own(self) -> bool:
        """Whether it is of our schema."""
        return self.path.startswith("/outrider.")


def methods(servers: Mapping[str, str]) -> Sequence[Method]:
    """Every RPC that there is. `servers` has an address for the name of each service of ours; each server offers
    health and reflection besides."""
    found: list[Method] = []
    for file in FILES:
        for service in file.services_by_name.values():
            addresses = [servers[service.full_name]] if service.full_name in servers else servers.values()
            found += [Method(address, method) for address in addresses for method in service.methods]
    return found


class Complaints(logging.Handler):
    """What the services log as an error, and what their event loop was left with."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))

    def on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """For `set_exception_handler`."""
        self.found.append(f"{context.get('message')}: {context.get('exception')!r}")


class _Drawn(NamedTuple):
    """One call, before it is made."""

    method: Method
    contents: Sequence[bytes]
    num_wanted: int
    """Answers after which it is cancelled."""


class Fuzzer:
    """Calls RPCs with nonsense, and counts what came of it."""

    def __init__(self, rng: Random, servers: Mapping[str, str], vocab_size: int) -> None:
        self.num_messages = 0
        self.statuses: Counter[str] = Counter()
        """By method and status."""
        self.broken: list[str] = []
        """Promises that were broken, with what broke them."""
        self._rng = rng
        self._nonsense = Nonsense(rng, good_messages(vocab_size))
        self._methods = methods(servers)
        self._weights = [OWN_WEIGHT if each.is_own else 1 for each in self._methods]
        self._channels = {address: open_channel(address) for address in servers.values()}

    async def batch(self, num_messages: int) -> None:
        """Sends so many messages or a few more."""
        until = self.num_messages + num_messages
        drawn: list[_Drawn] = []
        while self.num_messages < until:
            drawn.append(self._draw())
            self.num_messages += len(drawn[-1].contents)
        calls = iter(drawn)

        async def make_calls() -> None:
            for each in calls:  # of all tasks together
                await self._call(each)

        await asyncio.gather(*(make_calls() for _ in range(CALLS_AT_A_TIME)))

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels.values():
            await channel.close()

    def _draw(self) -> _Drawn:
        """In the order of the calls, so that a seed makes the same ones whatever becomes of them."""
        (method,) = self._rng.choices(self._methods, self._weights)
        contents = self._contents(method.descriptor)
        return _Drawn(method, contents, self._rng.randrange(1, 12) if method.descriptor.client_streaming else 1)

    async def _call(self, drawn: _Drawn) -> None:
        method, contents, num_wanted = drawn
        descriptor = method.descriptor
        kind = f"{'stream' if descriptor.client_streaming else 'unary'}_"
        kind += "stream" if descriptor.server_streaming else "unary"
        multi_callable = getattr(self._channels[method.address], kind)(method.path)
        call = multi_callable(
            _all(contents) if descriptor.client_streaming else contents[0], timeout=ANSWER_SECONDS_MAX
        )
        code, details = grpc.StatusCode.OK, ""
        try:
            if descriptor.server_streaming:
                async for _ in call:
                    num_wanted -= 1
                    if num_wanted == 0:
                        code = grpc.StatusCode.CANCELLED
                        break
            else:
                await call
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details() or ""
        finally:
            call.cancel()
        if details == _SPOILED:
            code = grpc.StatusCode.ABORTED
        self.statuses[f"{method.path} {code.name}"] += 1
        if code in FORBIDDEN or _INTERNALS.search(details):
            shown = [content.hex() for content in contents]
            self.broken.append(f"{method.path} ended with {code.name} {details!r} on {shown}")

    def _contents(self, descriptor: MethodDescriptor) -> list[bytes]:
        """A stream begins, more often than not, with an opening that is taken: else nothing behind it is read."""
        kind = descriptor.input_type
        if not descriptor.client_streaming:
            return [self._nonsense.content(kind)]
        contents = [
            self._nonsense.good(kind).SerializeToString()
            if self._rng.random() < SOUND_RATE
            else self._nonsense.content(kind)
            for _ in range(self._rng.randrange(1, STREAM_MESSAGES_MAX))
        ]
        openings = [message for message in self._nonsense.all_good(kind) if _opens(message)]
        if openings and self._rng.random() < 0.8:
            contents.insert(0, self._rng.choice(openings).SerializeToString())
        return contents


def _opens(message: Message) -> bool:
    return any(command.HasField("open") for command in getattr(message, "commands", ()))


async def _all(contents: Sequence[bytes]) -> AsyncIterator[bytes]:
    for content in contents:
        yield content
