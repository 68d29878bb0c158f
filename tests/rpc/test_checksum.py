"""No flipped bit goes unseen."""

from __future__ import annotations

from random import Random

import pytest

from outrider.core.protocol.errors import DamagedMessageError
from outrider.rpc.checksum import parsed, sealed
from outrider.v1 import verify_pb2

VERDICT = verify_pb2.Verdict(position=300, token_ids=[7, 400, 90_000], num_accepted=2)
EVENT = verify_pb2.VerifyEvents(events=[verify_pb2.VerifyEvent(verdict=VERDICT)])
CONTENT = sealed(EVENT.SerializeToString())


def flipped(*bits: int) -> bytes:
    content = bytearray(CONTENT)
    for bit in bits:
        content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


def test_what_arrives_whole_is_what_was_sent() -> None:
    arrived = parsed(verify_pb2.VerifyEvents, CONTENT)
    assert arrived.events == EVENT.events
    assert arrived.HasField("checksum"), "for others it is a field of the message"


def test_every_one_flipped_bit_and_any_two_are_seen() -> None:
    num_bits = 8 * len(CONTENT)
    for first in range(num_bits):
        for second in range(first, num_bits):
            with pytest.raises(DamagedMessageError):
                parsed(verify_pb2.VerifyEvents, flipped(*{first, second}))


def test_three_flipped_bits_are_seen() -> None:
    random = Random(3)
    for _ in range(5_000):
        with pytest.raises(DamagedMessageError):
            parsed(verify_pb2.VerifyEvents, flipped(*random.sample(range(8 * len(CONTENT)), 3)))


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT[1:], EVENT.SerializeToString(), CONTENT + b"\0"])
def test_what_is_cut_or_added_is_seen(content: bytes) -> None:
    with pytest.raises(DamagedMessageError):
        parsed(verify_pb2.VerifyEvents, content)
