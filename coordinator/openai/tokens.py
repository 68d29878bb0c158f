"""POST /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from coordinator.openai.body import Body, Int


class TokenizeBody(Body):
    """Asks for the token ids of a text."""

    prompt: str
    add_special_tokens: bool | None = None


class DetokenizeBody(Body):
    """Asks for the text of token ids."""

    tokens: list[Int]
