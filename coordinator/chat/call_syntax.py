"""Call syntax: how the models of a family write calls whose arguments are a JSON object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from coordinator.chat.calls import DEEPSEEK


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSyntax:
    """Text around calls. `{}` stands for a tool's name."""

    opening: str
    """Markup that begins the first call, and nothing else; empty if nothing tells a call from text in JSON."""
    begin: str = ""
    """Between `opening` and a call."""
    head: str
    """Before a call's arguments."""
    tail: str = ""
    """Behind them."""
    between: str | None
    """Between calls; None if the family writes one at a time."""
    end: str = ""
    """Behind the last one."""


def _mistral(template: str) -> CallSyntax:
    opening = "[TOOL_CALLS]"
    if "[ARGS]" in template:
        return CallSyntax(opening=opening, head="{}[ARGS]", between=opening)
    begin = " [" if f"{opening} [" in template else "["
    return CallSyntax(
        opening=opening, begin=begin, head='{"name": "{}", "arguments": ', tail="}", between=", ", end="]"
    )


def _deepseek(template: str) -> CallSyntax:
    sep, call_begin, call_end = DEEPSEEK["sep"], DEEPSEEK["call begin"], DEEPSEEK["call end"]
    is_fenced = "```json" in template
    return CallSyntax(
        opening=DEEPSEEK["calls begin"],
        begin=call_begin,
        head=f"function{sep}{{}}\n```json\n" if is_fenced else f"{{}}{sep}",
        tail=f"\n```{call_end}" if is_fenced else call_end,
        between=f"\n{call_begin}" if is_fenced else call_begin,
        end=DEEPSEEK["calls end"],
    )


_HERMES: Final = CallSyntax(
    opening="<tool_call>",
    begin="\n",
    head='{"name": "{}", "arguments": ',
    tail="}\n</tool_call>",
    between="\n<tool_call>\n",
)

# Templates of this family refuse a conversation in which a message has two calls.
_LLAMA3_JSON: Final = CallSyntax(opening="", head='{"name": "{}", "parameters": ', tail="}", between=None)

CALL_SYNTAXES: Final[Mapping[str, Callable[[str], CallSyntax]]] = {
    "hermes": lambda _: _HERMES,
    "deepseek_v3": _deepseek,
    "mistral": _mistral,
    "llama3_json": lambda _: _LLAMA3_JSON,
}
"""By the family's name, what the text of a chat template tells of its syntax."""

CALL_MARKUP: Final = frozenset({"<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]"} | set(DEEPSEEK.values()))
"""Markup of calls that may be a token of its own."""
