"""An entry of a serialized message: the message that holds it is never made, which would copy it twice."""

from __future__ import annotations

from typing import Final

_TAG: Final = bytes([1 << 3 | 2])  # 2: a length and so many bytes


def entry(content: bytes) -> bytes:
    """A message whose repeated field 1 has one element, the message that `content` serializes.

    Such messages one after another are the message with all elements: so protobuf is defined.
    """
    length, head = len(content), bytearray(_TAG)
    while length >= 128:  # seven bits a byte, the lowest first; the eighth says that more follow
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    return bytes(head) + content
