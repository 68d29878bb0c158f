"""POST /v1/responses: what it is sent. Text and calls of functions in and out; nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from coordinator.openai.api_error import ApiError
from coordinator.openai.body import Fields, Int
from coordinator.openai.generation_body import GenerationBody
from coordinator.openai.input_items import messages_of
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
        "reasoning": {},
        "truncation": "disabled",
    }

    input: str | list[Any]
    instructions: str | None = None
    max_output_tokens: Int | None = None
    include: list[str] | None = None
    top_logprobs: Int | None = None
    text: TextFields | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None

    @property
    def names(self) -> Mapping[str, str]:
        """See `Body`. Without another form, the grammar of an answer is that of calls."""
        return {"grammar": "tools", **super().names}

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

    @property
    def text_format(self) -> dict[str, Any]:
        """The form of the text as the client sent it."""
        asked = self.text.format if self.text is not None else None
        return {"type": "text"} if asked is None else asked.model_dump(by_alias=True, exclude_none=True)

    @property
    def chat_tools(self) -> list[dict[str, Any]] | None:
        """The tools in chat's shape. Raises ApiError."""
        return [_chat_tool(tool, number) for number, tool in enumerate(self.tools or ())] or None

    @property
    def chat_tool_choice(self) -> Any:
        """The choice in chat's shape, where it is one."""
        choice = self.tool_choice
        is_function = isinstance(choice, dict) and choice.get("type") == "function"
        return {"type": "function", "function": {"name": choice.get("name")}} if is_function else choice

    def messages(self) -> list[dict[str, Any]]:
        """The conversation as the chat template takes it. Raises ApiError."""
        told = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else messages_of(self.input)
        system = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        return [*system, *told]


def _chat_tool(tool: Any, number: int) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise ApiError(f"tools[{number}] must be a function; other kinds of tools are not supported", param="tools")
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
