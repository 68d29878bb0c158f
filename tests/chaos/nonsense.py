"""Messages of any protobuf type, made from its descriptor: random ones, good ones with a few changes, broken bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

DEPTH_MAX = 5
"""Messages within messages; a type that holds itself would have no end."""

LONG = 3000
"""Elements of a list that is longer than anybody expects."""

_INT32, _INT64 = 2**31, 2**63
_INTEGERS: Mapping[int, Sequence[int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-_INT32, -1, 0, 1, 2, _INT32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-_INT64, -1, 0, 1, 2, _INT64 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 1, 2, 3, 16, 60, 61, 255, 256, 65535, _INT32, 2 * _INT32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 1, 2, _INT64, 2 * _INT64 - 1),
}
_REALS = (0.0, -0.0, 1.0, 0.5, -1.0, 100.0, 1e-40, 3e38, math.nan, math.inf, -math.inf)
_TEXTS = ("", "a", "0", "default", "\x00", "\x1b[2J", "a\nb", "ä€𝄞", "%s{}", "../../etc/passwd", "x" * 300)


class Nonsense:
    """Draws messages. The same `rng` gives the same ones."""

    def __init__(self, rng: Random, good: Mapping[str, Sequence[Message]]) -> None:
        """`good` has messages by the full name of their type, which are changed as often as new ones are made."""
        self._rng = rng
        self._good = good

    def content(self, descriptor: Descriptor) -> bytes:
        """What goes over the wire where a message of that type is expected."""
        draw = self._rng.random()
        if draw < 0.1:
            return self.good(descriptor).SerializeToString()
        if draw < 0.2:
            return self.random(descriptor).SerializeToString()
        if draw < 0.75:
            return self.changed(self.good(descriptor)).SerializeToString()
        return self.broken(self.good(descriptor).SerializeToString())

    def good(self, descriptor: Descriptor) -> Message:
        """A copy of one of the good messages of that type; an empty one if there are none."""
        message = GetMessageClass(descriptor)()
        if good := self.all_good(descriptor):
            message.CopyFrom(self._rng.choice(good))
        return message

    def all_good(self, descriptor: Descriptor) -> Sequence[Message]:
        """The good messages of that type."""
        return self._good.get(descriptor.full_name, ())

    def random(self, descriptor: Descriptor, depth: int = 0) -> Message:
        """A message with fields at random."""
        message = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if self._rng.random() < 0.5:
                self._set(message, field, depth)
        return message

    def changed(self, message: Message) -> Message:
        """The same message, some of whose fields, at any depth, have other values."""
        for _ in range(self._rng.choice((1, 1, 1, 2, 5))):
            place = message
            while below := [each for field, value in place.ListFields() for each in _messages(field, value)]:
                if self._rng.random() < 0.3:
                    break
                place = self._rng.choice(below)
            fields = place.DESCRIPTOR.fields
            if not fields:
                continue
            field = self._rng.choice(fields)
            if self._rng.random() < 0.15:
                place.ClearField(field.name)
            else:
                self._set(place, field, DEPTH_MAX - 1)
        return message

    def broken(self, content: bytes) -> bytes:
        """Bytes with flips, cuts and repetitions."""
        found, rng = bytearray(content), self._rng
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(found) + 1)
            match rng.randrange(4):
                case 0 if at < len(found):
                    found[at] ^= 1 << rng.randrange(8)
                case 1:
                    found[at:at] = rng.randbytes(rng.choice((1, 3, 20)))
                case 2:
                    del found[at:]
                case _:
                    found[at:at] = found[:at]
            del found[4096:]
        return bytes(found)

    def _set(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        rng = self._rng
        if not field.is_repeated:
            if field.message_type is not None:
                getattr(message, field.name).SetInParent()
                if depth < DEPTH_MAX:
                    getattr(message, field.name).CopyFrom(self.random(field.message_type, depth + 1))
            else:
                setattr(message, field.name, self._value(field))
            return
        values: Any = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = field.message_type.fields
            for _ in range(rng.choice((0, 1, 3, 40))):
                if value.message_type is None:
                    values[self._value(key)] = self._value(value)
                else:
                    values[self._value(key)].CopyFrom(self.random(value.message_type, depth + 1))
            return
        if rng.random() < 0.5:
            del values[rng.randrange(len(values) + 1) :]
        for _ in range(LONG if rng.random() < 0.01 else rng.choice((0, 1, 2, 5, 30))):
            if field.message_type is None:
                values.append(self._value(field))
            elif depth < DEPTH_MAX:
                values.add().CopyFrom(self.random(field.message_type, depth + 1))

    def _value(self, field: FieldDescriptor) -> Any:
        rng = self._rng
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_BOOL:
                return rng.random() < 0.5
            case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
                return rng.choice(_REALS) if rng.random() < 0.7 else rng.uniform(-3.0, 3.0)
            case FieldDescriptor.CPPTYPE_ENUM:
                return rng.choice((0, 1, 2, 99, _INT32 - 1))
            case FieldDescriptor.CPPTYPE_STRING:
                text = rng.choice(_TEXTS)
                return text if field.type == FieldDescriptor.TYPE_STRING else text.encode()
            case kind:
                return rng.choice(_INTEGERS[kind]) if rng.random() < 0.6 else rng.randrange(70)


def _messages(field: FieldDescriptor, value: Any) -> Sequence[Message]:
    """Those in a field's value; what a map holds is left alone."""
    if field.message_type is None or field.message_type.GetOptions().map_entry:
        return ()
    return value if field.is_repeated else [value]
