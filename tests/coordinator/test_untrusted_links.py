"""What a link does with bytes that no honest verifier sends, or that are not those that it sent."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.verifier_link import GrpcVerifierLink
from outrider.core.protocol.errors import (
    DamagedMessageError,
    OutriderError,
    UntrustedWorkerError,
)
from outrider.core.protocol.messages import (
    TokenLogprobs,
    Verdict,
)
from outrider.core.protocol.validation import DRAFT_TOKENS_MAX, LOGPROBS_MAX
from outrider.rpc import checksum
from outrider.rpc.stream_kind import VERIFY
from outrider.v1 import verify_pb2
from tests import sessions

from .linked import VERDICT, VERIFY_OPEN, Handle, Peer, Serve, listens, sayings


def saying(content: bytes, *, is_sealed: bool = True) -> Handle:
    """A worker that says these bytes, whatever they are."""

    async def handle(peer: Peer) -> None:
        await peer.hear()
        await peer.send(Raw(content, is_sealed))
        await listens(peer)

    return handle


class Raw:
    """Serialized already."""

    def __init__(self, content: bytes, is_sealed: bool) -> None:
        self.content, self.is_sealed = content, is_sealed


@pytest.fixture
def raw_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers send `Raw` as it is."""

    def seal(content: bytes | Raw) -> bytes:
        if isinstance(content, bytes):
            return checksum.sealed(content)
        return checksum.sealed(content.content) if content.is_sealed else content.content

    def serialize(handler: Any) -> Any:
        return lambda message: message if isinstance(message, Raw) else handler.response_serializer(message)

    class RawServer(checksum.Checksums):
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            async def raw(details: Any) -> Any:
                handler = await continuation(details)
                return handler._replace(response_serializer=serialize(handler))

            handler: Any = await super().intercept_service(raw, details)
            inner = serialize(await continuation(details))
            return handler._replace(response_serializer=lambda message: seal(inner(message)))

    monkeypatch.setattr("outrider.rpc.server.Checksums", RawServer)


VERDICT_BYTES = sessions.events(VERIFY, VERDICT, session=1).SerializeToString()


def said(event: verify_pb2.VerifyEvent) -> bytes:
    """By the first session of a stream."""
    event.session = 1
    return verify_pb2.VerifyEvents(events=[event]).SerializeToString()


@pytest.mark.usefixtures("raw_answers")
@pytest.mark.parametrize(
    ("handle", "error"),
    [
        (saying(VERDICT_BYTES, is_sealed=False), DamagedMessageError),
        (
            saying(bytes([VERDICT_BYTES[0] ^ 1]) + checksum.sealed(VERDICT_BYTES)[1:], is_sealed=False),
            DamagedMessageError,
        ),
        (saying(b"", is_sealed=False), DamagedMessageError),
        (saying(b"no protobuf"), UntrustedWorkerError),
        (saying(said(verify_pb2.VerifyEvent())), UntrustedWorkerError),
        (
            saying(said(verify_pb2.VerifyEvent(finished=verify_pb2.VerifyFinished()))),
            UntrustedWorkerError,
        ),
        (
            saying(said(verify_pb2.VerifyEvent(verdict=verify_pb2.Verdict(token_ids=[1] * 1_000_000)))),
            UntrustedWorkerError,
        ),
    ],
    ids=["no checksum", "a flipped bit", "nothing", "noise", "an empty event", "no cause", "a million tokens"],
)
async def test_what_a_verifier_cannot_have_meant_ends_its_stream(
    serve: Serve, handle: Handle, error: type[OutriderError]
) -> None:
    link = GrpcVerifierLink((await serve(handle)).seat)
    link.offer(VERIFY_OPEN)
    with pytest.raises(error):
        await anext(sayings(link))
    link.close()


async def test_the_largest_verdict_that_may_be_arrives(serve: Serve) -> None:
    best = TokenLogprobs(-1.0, (2**32 - 1,) * LOGPROBS_MAX, (-1.0,) * LOGPROBS_MAX)
    largest = Verdict(
        position=2,
        token_ids=[2**32 - 1] * (DRAFT_TOKENS_MAX + 1),
        num_accepted=DRAFT_TOKENS_MAX,
        num_draft_tokens=DRAFT_TOKENS_MAX,
        logprobs=(best,) * (DRAFT_TOKENS_MAX + 1),
    )

    async def handle(peer: Peer) -> None:
        await peer.hear()
        await peer.say(largest)
        await listens(peer)

    link = GrpcVerifierLink((await serve(handle)).seat)
    link.offer(VERIFY_OPEN)
    assert await anext(sayings(link)) == largest
    link.close()


async def test_an_opening_that_was_damaged_on_its_way_opens_nothing(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[object] = []

    async def handle(peer: Peer) -> None:
        heard.append(await peer.hear())

    def flip(content: bytes) -> bytes:
        flipped = bytearray(checksum.sealed(content))
        flipped[len(flipped) // 2] ^= 0b10101
        return bytes(flipped)

    link = GrpcVerifierLink((await serve(handle)).seat)
    monkeypatch.setattr("outrider.rpc.multiplexer.sealed", flip)
    link.offer(VERIFY_OPEN)
    with pytest.raises(DamagedMessageError):
        await anext(sayings(link))
    assert not heard
    link.close()
