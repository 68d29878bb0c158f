"""An entry of a serialized message: the message that holds it is never made, which would copy it twice."""

from __future__ import annotations

from typing import Final

_TAG: Final = bytes([1 << 3 | 2])  # 2: a length and so many bytes
_SHORT: Final = [_TAG + bytes([length]) for length in range(128)]


def entry(content: bytes) -> bytes:
    """A message whose repeated field 1 has one element, the message that `content` serializes.

    Such messages one after another are the message with all elements: so protobuf is defined.
    """
    length = len(content)
    if length < 128:  # as nearly all are
        return _SHORT[length] + content
    head = bytearray(_TAG)
    while length >= 128:  # seven bits a byte, the lowest first; the eighth says that more follow
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    return bytes(head) + content
