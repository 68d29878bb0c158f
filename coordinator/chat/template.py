"""Chat template: a model's own rule that makes one prompt of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import jinja2

from coordinator.chat.expectations import Expectations, expectations_of
from coordinator.chat.messages import conformed, refused
from coordinator.chat.sandbox import RefusedError, compiled
from outrider.core.protocol.chat_prompt import Tool
from outrider.core.protocol.messages import DEFAULT_TEMPLATE, TOOL_USE_TEMPLATE
from outrider.core.protocol.validation import PROMPT_BYTES_MAX

_RESERVED = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize"}
)
"""Set by what a request says elsewhere, or by the model alone."""

_CONTINUED = "\N{REPLACEMENT CHARACTER}continued\N{REPLACEMENT CHARACTER} "
"""Marks in the rendered text where the final message ends. The space tells whether the template strips messages."""

_DIGEST_DIGITS = 8
"""Enough to tell a model's few templates apart."""

_REASON_CHARACTERS_MAX = 300
"""As much of a template's own words as a client is shown."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A model's templates by name, and its special tokens by the variables that templates know them by."""

    templates: Mapping[str, str]
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_there(self) -> bool:
        """Whether the model has one."""
        return DEFAULT_TEMPLATE in self.templates

    def name(self, tools: Sequence[Tool] | None = None) -> str:
        """That of the template for a conversation with these tools, whether it is there or not."""
        return TOOL_USE_TEMPLATE if tools and TOOL_USE_TEMPLATE in self.templates else DEFAULT_TEMPLATE

    def title(self, tools: Sequence[Tool] | None = None) -> str:
        """What tells this template from others, and from what stood under its name before. Raises InvalidRequestError
        if there is none."""
        return f"{self.name(tools)}-{sha256(self.source(tools).encode()).hexdigest()[:_DIGEST_DIGITS]}"

    def source(self, tools: Sequence[Tool] | None = None) -> str:
        """The text of the template for a conversation with these tools. Raises InvalidRequestError if there is none."""
        name = self.name(tools)
        if name not in self.templates:
            raise refused(
                "messages",
                "the target has no chat template, so it was not made for conversations, or its folder lacks "
                "chat_template.jinja; use completions, with the prompt as the model expects it",
            )
        return self.templates[name]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Tool] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt, special tokens included: it is to be tokenized without adding any.

        It is what transformers' `apply_chat_template` makes of messages that have the shape the template expects; they
        are given it here. `continue_final_message` leaves the last message open, so that the answer continues it.

        Raises InvalidRequestError for what the template refuses, in its own words, and for what it cannot say.
        """
        source = self.source(tools)
        kwargs = chat_template_kwargs or {}
        if clash := sorted(_RESERVED & kwargs.keys()):
            raise refused("chat_template_kwargs", f"must not hold {', '.join(clash)}, which cannot be set there")
        if continue_final_message and add_generation_prompt:
            raise refused("continue_final_message", "excludes add_generation_prompt; set that to false")
        expects = _read(source)
        if tools and not expects.tools:
            raise refused("tools", "the model's chat template has no place for tools; describe them in a message")
        conversation = conformed(messages, expects)
        ending = _mark_ending(conversation) if continue_final_message else ""
        variables = {
            **self.special_tokens,
            **kwargs,
            "messages": conversation,
            "tools": tools or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        prompt = _rendered(source, variables)
        return _without_mark(prompt, ending) if continue_final_message else prompt


def _read(source: str) -> Expectations:
    try:
        return expectations_of(source)
    except (jinja2.TemplateSyntaxError, RecursionError) as error:
        raise refused(
            "messages",
            f"the model's chat template cannot be read ({_words(error)}); mend it in the model's folder, or use "
            "completions",
        ) from error


def _rendered(source: str, variables: Mapping[str, Any]) -> str:
    pieces: list[str] = []
    num_characters = 0
    try:
        for piece in compiled(source).generate(variables):
            num_characters += len(piece)
            if num_characters > PROMPT_BYTES_MAX:
                raise RefusedError(f"a prompt may have {PROMPT_BYTES_MAX} bytes, and this one has more")
            pieces.append(piece)
    except RefusedError as error:
        raise refused("messages", f"the model's chat template refuses them: {_words(error)}") from error
    except Exception as error:  # a template meets whatever Python raises
        raise refused(
            "messages", f"the model's chat template fails on them ({type(error).__name__}: {_words(error)})"
        ) from error
    return "".join(pieces)


def _mark_ending(conversation: Sequence[dict[str, Any]]) -> str:
    """Marks where the final message ends, and returns the text that it ends in."""
    final = conversation[-1]
    content = final.get("content")
    if isinstance(content, list) and content:
        final, key = content[-1], "text"
    else:
        key = "content"
    text = final.get(key)
    if not isinstance(text, str):
        raise refused("continue_final_message", "the final message has no content that could be continued")
    final[key] = text + _CONTINUED
    return text


def _without_mark(prompt: str, ending: str) -> str:
    """The prompt up to the end of the final message."""
    end = prompt.rfind(_CONTINUED.rstrip())
    if end < 0 or ending.strip() not in prompt:
        raise refused("continue_final_message", "the model's chat template does not show the final message as it is")
    is_stripped = not prompt.startswith(_CONTINUED, end)
    return prompt[:end].rstrip() if is_stripped else prompt[:end]


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:_REASON_CHARACTERS_MAX]
