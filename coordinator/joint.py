"""Joints: how the texts of single tokens become one text, each part as soon as it is certain."""

from __future__ import annotations

import re
from codecs import utf_8_decode
from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

from tokenizers import decoders, pre_tokenizers

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""Stands for bytes that are no character."""

TOKENS_KNOWN_MAX = 65_536
"""Tokens whose bytes are kept at hand, those that were used last: some ten megabytes at most."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")
"""A byte as tokenizers reads it: Rust takes a plus sign for part of a number."""


def _byte_alphabet() -> Mapping[str, int]:
    """The byte that each character of a byte-level vocabulary stands for: characters below 256 for themselves, those
    from 256 on, in order, for the bytes that are left."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [ord(character) for character in alphabet if ord(character) < 256]
    return dict(zip(alphabet, [*printable, *sorted(set(range(256)) - set(printable))], strict=True))


_BYTES = _byte_alphabet()


class Joint(Protocol):
    """How the texts of single tokens become one text."""

    def begins(self, token: str) -> bool:
        """Whether nothing in front of `token` matters for what comes after it."""
        ...

    def push(self, token: str) -> str:
        """Adds a token. Returns what became certain."""
        ...

    def rest(self) -> str:
        """What would follow if this were the end. Changes nothing."""
        ...

    def content(self, token: str) -> bytes:
        """What `token` alone stands for, in UTF-8 if it is text. Changes nothing."""
        ...


class Plain:
    """Tokens stand side by side."""

    def begins(self, token: str) -> bool:
        """See `Joint.begins`."""
        return True

    def push(self, token: str) -> str:
        """See `Joint.push`."""
        return token

    def rest(self) -> str:
        """See `Joint.rest`."""
        return ""

    def content(self, token: str) -> bytes:
        """See `Joint.content`."""
        return token.encode()


class ByteLevel:
    """Each character of a token is a byte; a token with any other character is text itself."""

    def __init__(self) -> None:
        self._pending = b""

    def begins(self, token: str) -> bool:
        """See `Joint.begins`. A byte that continues no character begins one, whatever was in front of it."""
        return any(byte & 0xC0 != 0x80 for byte in self._bytes(token))

    def push(self, token: str) -> str:
        """See `Joint.push`."""
        content = self._pending + self._bytes(token)
        text, num_bytes = utf_8_decode(content, "replace", False)
        self._pending = content[num_bytes:]
        return text

    def rest(self) -> str:
        """See `Joint.rest`."""
        return self._pending.decode("utf-8", "replace")

    def content(self, token: str) -> bytes:
        """See `Joint.content`."""
        return self._bytes(token)

    @staticmethod
    @lru_cache(TOKENS_KNOWN_MAX)
    def _bytes(token: str) -> bytes:
        try:
            return bytes([_BYTES[character] for character in token])
        except KeyError:
            return token.encode()


class ByteFallback:
    """Tokens such as <0xE2> are bytes. A run of them is text if all of it is; else each byte is a U+FFFD."""

    def __init__(self) -> None:
        self._num_bytes = 0
        self._text: list[str] = []
        self._pending = b""
        self._is_text = True

    def begins(self, token: str) -> bool:
        """See `Joint.begins`."""
        return not _BYTE_TOKEN.fullmatch(token)

    def push(self, token: str) -> str:
        """See `Joint.push`."""
        found = _BYTE_TOKEN.fullmatch(token)
        if not found:
            text = self.rest() + token
            self.__init__()
            return text
        if not self._is_text:
            return REPLACEMENT
        self._num_bytes += 1
        self._pending += bytes([int(found[1], 16)])
        try:
            text, num_bytes = utf_8_decode(self._pending, "strict", False)
        except UnicodeDecodeError:
            self._is_text = False
            return REPLACEMENT * self._num_bytes
        self._text.append(text)
        self._pending = self._pending[num_bytes:]
        return ""

    def rest(self) -> str:
        """See `Joint.rest`."""
        if not self._is_text:
            return ""
        return REPLACEMENT * self._num_bytes if self._pending else "".join(self._text)

    def content(self, token: str) -> bytes:
        """See `Joint.content`."""
        found = _BYTE_TOKEN.fullmatch(token)
        return bytes([int(found[1], 16)]) if found else token.encode()


class Suffixed:
    """A suffix such as </w> is a space, and nothing at the end of the text."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._held = ""

    def begins(self, token: str) -> bool:
        """See `Joint.begins`."""
        return True

    def push(self, token: str) -> str:
        """See `Joint.push`."""
        text, self._held = self._held.replace(self._suffix, " "), token
        return text

    def rest(self) -> str:
        """See `Joint.rest`."""
        return self._held.replace(self._suffix, "")

    def content(self, token: str) -> bytes:
        """See `Joint.content`."""
        return token.replace(self._suffix, " ").encode()


class Whole:
    """A decoder of which nothing is known: the text is certain at the end."""

    def __init__(self, decoder: decoders.Decoder) -> None:
        self._decoder = decoder
        self._tokens: list[str] = []

    def begins(self, token: str) -> bool:
        """See `Joint.begins`."""
        return False

    def push(self, token: str) -> str:
        """See `Joint.push`."""
        self._tokens.append(token)
        return ""

    def rest(self) -> str:
        """See `Joint.rest`."""
        return self._decoder.decode(self._tokens) if self._tokens else ""

    def content(self, token: str) -> bytes:
        """See `Joint.content`."""
        return self._decoder.decode([token]).encode()
