"""POST /v1/chat/completions: what it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from coordinator.openai.api_error import ApiError
from coordinator.openai.body import Int
from coordinator.openai.generation_body import ChoicesBody


class ChatBody(ChoicesBody):
    """The body. Messages and tools are the chat template's to check."""

    field_names: ClassVar[Mapping[str, str]] = {
        "text": "messages",
        "token_ids.ids": "messages",
        "num_completions": "n",
        "resume": "received_token_ids",
        "speculation.prediction": "prediction",
        "num_logprobs": "top_logprobs",
    }
    neutral: ClassVar[Mapping[str, Any]] = {
        **ChoicesBody.neutral,
        "function_call": "none",
        "functions": [],
        "modalities": ["text"],
    }

    messages: list[Any]
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: Int | None = None
    logprobs: bool | None = None
    top_logprobs: Int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @property
    def names(self) -> Mapping[str, str]:
        """See `Body`. Without another form, the grammar of an answer is that of calls."""
        return {"grammar": "tools", **super().names}

    @property
    def max_tokens_in_force(self) -> int | None:
        """See `GenerationBody`. OpenAI's newer name wins."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """See `GenerationBody`. Raises ApiError."""
        if not self.logprobs and self.top_logprobs is not None:
            raise ApiError("top_logprobs needs logprobs: true", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None
