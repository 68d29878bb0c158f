"""Log-probabilities in the two shapes that OpenAI's interface has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from coordinator.detokenizer import Detokenizer
from outrider.core.coordinate.events import Token

_LOGPROB_MIN: Final = -9999.0
"""Stands for minus infinity, which JSON lacks, as it does at OpenAI."""


def chat_logprobs(tokens: Sequence[Token], detokenizer: Detokenizer) -> dict[str, Any]:
    """Of a piece of a chat's message: tokens with their bytes, and the alternatives beside each."""
    return {
        "content": [
            {
                **_chat_entry(token.token_id, token.logprobs.logprob, detokenizer),
                "top_logprobs": [
                    _chat_entry(token_id, logprob, detokenizer)
                    for token_id, logprob in zip(token.logprobs.top_token_ids, token.logprobs.top_logprobs, strict=True)
                ],
            }
            for token in tokens
            if token.logprobs is not None
        ],
        "refusal": None,
    }


def completion_logprobs(tokens: Sequence[Token], detokenizer: Detokenizer, offset: int) -> dict[str, Any]:
    """Of a piece of a completion that has `offset` characters before it: four lists of one length."""
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token in tokens:
        told = token.logprobs
        if told is not None:
            name = _name(token.token_id, detokenizer)
            top = {
                _name(token_id, detokenizer): _finite(logprob)
                for token_id, logprob in zip(told.top_token_ids, told.top_logprobs, strict=True)
            }
            found["tokens"].append(name)
            found["token_logprobs"].append(_finite(told.logprob))
            found["top_logprobs"].append({name: _finite(told.logprob)} | top)
            found["text_offset"].append(offset)
        offset += len(token.text)
    return found


def _chat_entry(token_id: int, logprob: float, detokenizer: Detokenizer) -> dict[str, Any]:
    content = detokenizer.content(token_id)
    return {"token": content.decode(errors="replace"), "logprob": _finite(logprob), "bytes": [*content]}


def _name(token_id: int, detokenizer: Detokenizer) -> str:
    """A token's text; of one that is no text by itself OpenAI's notation of its bytes."""
    content = detokenizer.content(token_id)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def _finite(logprob: float) -> float:
    return max(logprob, _LOGPROB_MIN)
