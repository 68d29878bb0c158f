"""POST /v1/responses: what it is sent. Text in and out; nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from coordinator.openai.api_error import ApiError
from coordinator.openai.body import Fields, Int
from coordinator.openai.generation_body import GenerationBody
from coordinator.openai.output_format import OutputFormat, TextFormat

_LOGPROBS = "message.output_text.logprobs"
"""What `include` holds if log-probabilities are wanted."""


class TextFields(Fields):
    """The form of the text."""

    neutral: ClassVar[Mapping[str, Any]] = {"verbosity": "medium"}

    format: TextFormat | None = None


class ResponseStreamOptions(Fields):
    """How to stream."""

    changes_no_token: ClassVar = ("include_obfuscation",)


class ResponsesBody(GenerationBody):
    """The body."""

    field_names: ClassVar[Mapping[str, str]] = {
        "text": "input",
        "token_ids.ids": "input",
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "num_logprobs": "top_logprobs",
    }
    neutral: ClassVar[Mapping[str, Any]] = {
        **GenerationBody.neutral,
        "background": False,
        "parallel_tool_calls": True,
        "reasoning": {},
        "tool_choice": "auto",
        "tools": [],
        "truncation": "disabled",
    }

    input: str | list[Any]
    instructions: str | None = None
    max_output_tokens: Int | None = None
    include: list[str] | None = None
    top_logprobs: Int | None = None
    text: TextFields | None = None
    metadata: dict[str, str] | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None

    @property
    def max_tokens_in_force(self) -> int | None:
        """See `GenerationBody`."""
        return self.max_output_tokens

    def formats(self) -> Iterator[OutputFormat]:
        """See `GenerationBody`."""
        if self.text is not None and self.text.format is not None:
            yield from self.text.format.formats("text.format")
        yield from super().formats()

    @property
    def num_logprobs(self) -> int | None:
        """See `GenerationBody`. Raises ApiError."""
        include = set(self.include or ())
        if include - {_LOGPROBS}:
            raise ApiError(f"include may hold {_LOGPROBS!r} alone", param="include")
        if self.top_logprobs and not include:
            raise ApiError(f"top_logprobs needs include: [{_LOGPROBS!r}]", param="top_logprobs")
        return (self.top_logprobs or 0) if include else None

    def messages(self) -> list[dict[str, Any]]:
        """The conversation as the chat template takes it. Raises ApiError."""
        told = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        system = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        return [*system, *(_message(item, number) for number, item in enumerate(told))]


def _message(item: Any, number: int) -> dict[str, Any]:
    if not isinstance(item, dict) or item.get("type", "message") != "message":
        raise ApiError(f"input[{number}] is no message; other items are not supported here", param="input")
    return {"role": item.get("role"), "content": item.get("content")}
