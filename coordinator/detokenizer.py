"""Token ids to text as they come: what tokenizers makes of all ids together, each part as soon as it is certain, in
constant time per token.

Not by tokenizers' DecodeStream: it decodes again whatever has brought no text yet, and fails where a later byte makes
earlier characters invalid.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

from tokenizers import Tokenizer, decoders

from coordinator.joint import ByteFallback, ByteLevel, Joint, Plain, Suffixed, Whole

_NEIGHBOUR = "\ue000"
"""A private character, for the token in front of the one whose own text is asked for."""

_SINGLE = {"Replace", "Strip", "Metaspace", "WordPiece"}
"""Decoders that change each token by itself, the first one perhaps otherwise than the others."""


class Detokenizer:
    """A tokenizer's way from ids to text, special tokens left out."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.special: Mapping[int, str] = {
            token_id: token.content for token_id, token in added.items() if token.special
        }
        """The names of special tokens, which no text shows, by their ids."""
        self._added = {token.content: token_id for token_id, token in added.items()}
        self._later: dict[int, str | None] = {}
        self._single: decoders.Decoder | None = None
        self.joint: Callable[[], Joint] = Plain
        self.strips: Sequence[tuple[str, int]] = ()
        """Characters that the joined text loses at its beginning, and how many of each at most."""
        decoder = tokenizer.decoder
        if decoder is None:
            return
        parts = _parts(json.loads(decoder.__getstate__()))
        num_single = next((index for index, part in enumerate(parts) if part["type"] not in _SINGLE), len(parts))
        joint, num_joining = _joint(parts[num_single:])
        strips = parts[num_single + num_joining :]
        if joint is None or any(part["type"] != "Strip" or part["stop"] for part in strips):
            self.joint, self._single = lambda: Whole(decoder), _decoder([])
            return
        self.joint, self._single = joint, _decoder(parts[:num_single])
        self.strips = [(part["content"], part["start"]) for part in strips]

    def special_ids(self, texts: Iterable[str]) -> Set[int]:
        """The special tokens that are called by one of `texts`."""
        return self.special.keys() & {self._tokenizer.token_to_id(text) for text in texts}

    def added_ids(self, texts: Iterable[str]) -> Mapping[str, int]:
        """Those of `texts` that are one token, special or not, though no text is made of it by merging."""
        return {text: self._added[text] for text in texts if text in self._added}

    def token(self, token_id: int, *, first: bool) -> str | None:
        """A token's own text, as the first one of a text or a later one; None if it has none."""
        if not first and token_id in self._later:
            return self._later[token_id]
        token = None if token_id in self.special else self._tokenizer.id_to_token(token_id)
        if token is not None and self._single is None:
            token = token if first else f" {token}"  # without a decoder, spaces stand between tokens
        elif token is not None and first:
            token = self._decode(token)
        elif token is not None:
            token = self._decode(_NEIGHBOUR, token)[len(self._decode(_NEIGHBOUR)) :]
        if not first:
            self._later[token_id] = token
        return token

    def content(self, token_id: int) -> bytes:
        """The bytes of one token alone: a part of a character perhaps. A special token's are those of its name."""
        token = self.token(token_id, first=False)
        if token is None:
            return (self._tokenizer.id_to_token(token_id) or "").encode()
        return self.joint().content(token)

    def _decode(self, *tokens: str) -> str:
        assert self._single is not None
        return self._single.decode(list(tokens))

    def after(self, token_ids: Sequence[int]) -> TextStream:
        """The text that follows a prompt. Looks at no more of the prompt than the text depends on: mostly a token or
        two, at worst all of it."""
        stream = TextStream(self)
        begin = len(token_ids)
        while begin > 0:
            begin -= 1
            token = self.token(token_ids[begin], first=False)
            if token is not None and stream.begins(token):
                break
        head = 0
        while head < begin and not stream.is_settled:
            stream.push(token_ids[head])
            head += 1
        if head < begin:
            stream.jump()
        for token_id in token_ids[max(head, begin) :]:
            stream.push(token_id)
        stream.continue_from_here()
        return stream


class TextStream:
    """One text."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._joint = detokenizer.joint()
        self._strips = list(detokenizer.strips)
        self._has_begun = False
        self._known = ""

    @property
    def is_settled(self) -> bool:
        """Whether the beginning of the text matters no longer."""
        return self._has_begun and not self._strips

    def begins(self, token: str) -> bool:
        """See `Joint.begins`."""
        return self._joint.begins(token)

    def jump(self) -> None:
        """Leaves out tokens, up to one that `begins`."""
        self._joint = self._detokenizer.joint()

    def continue_from_here(self) -> None:
        """What would follow at present if this were the end is known already: it is the end of a prompt's own text."""
        self._known = self.rest()

    def push(self, token_id: int) -> str:
        """Adds a token. Returns what became certain."""
        token = self._detokenizer.token(token_id, first=not self._has_begun)
        if token is None:
            return ""
        self._has_begun = True
        text = self._joint.push(token)
        if self._strips and text:
            text = self._stripped(text)
        if self._known and text:
            num_known = _common(text, self._known)
            self._known = self._known[num_known:] if num_known == len(text) else ""
            text = text[num_known:]
        return text

    def rest(self) -> str:
        """What would follow if this were the end. Changes nothing."""
        strips = list(self._strips)
        text = self._joint.rest()
        text = self._stripped(text) if text else text
        self._strips = strips
        return text[_common(text, self._known) :]

    def _stripped(self, text: str) -> str:
        left: list[tuple[str, int]] = []
        for content, num_max in self._strips:
            num_stripped = _common(text, content * num_max)
            text = text[num_stripped:]
            if not text:
                left.append((content, num_max - num_stripped))
        self._strips = [(content, num_left) for content, num_left in left if num_left]
        return text


def _parts(decoder: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A decoder's JSON as a list of decoders that follow one another."""
    if decoder["type"] != "Sequence":
        return [decoder]
    return [part for inner in decoder["decoders"] for part in _parts(inner)]


def _joint(parts: Sequence[Mapping[str, Any]]) -> tuple[Callable[[], Joint] | None, int]:
    """The joint that `parts` begin with and how many of them it is; None if it cannot be streamed."""
    match [part["type"] for part in parts]:
        case []:
            return Plain, 0
        case ["Fuse", *_]:
            return Plain, 1
        case ["ByteLevel", *rest]:
            return ByteLevel, 1 + (rest[:1] == ["Fuse"])
        case ["ByteFallback"]:
            return ByteFallback, 1
        case ["ByteFallback", "Fuse", *_]:
            return ByteFallback, 2
        case ["BPEDecoder"] if parts[0]["suffix"]:
            return lambda: Suffixed(parts[0]["suffix"]), 1
        case _:
            return None, 0


def _decoder(parts: Sequence[Mapping[str, Any]]) -> decoders.Decoder:
    decoder = decoders.Fuse()
    decoder.__setstate__(json.dumps({"type": "Sequence", "decoders": list(parts)}).encode())
    return decoder


def _common(text: str, other: str) -> int:
    """Length of the longest common beginning."""
    for length, (one, another) in enumerate(zip(text, other, strict=False)):
        if one != another:
            return length
    return min(len(text), len(other))
