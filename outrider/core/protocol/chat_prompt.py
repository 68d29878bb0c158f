"""Chat prompt: messages that a model's own chat template makes one prompt of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Tool = Mapping[str, Any]
"""A tool as OpenAI's chat interface describes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """What was said so far, in JSON's types as OpenAI's chat interface has them, unchecked."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Tool] | None = None
    add_generation_prompt: bool = True
    """Whether the prompt ends where the model's answer begins."""
    continue_final_message: bool = False
    """Whether the last message is left open, so that the answer continues it. Excludes `add_generation_prompt`."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """More variables of the template, such as `enable_thinking`."""
