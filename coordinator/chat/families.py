"""Families of models: which grammar a model's answers follow, by its chat template or by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from coordinator.chat.calls import DEEPSEEK, deepseek_v3, hermes, llama3_json, mistral
from coordinator.chat.parser import Parser, Steps
from coordinator.chat.qwen3_coder import Strings, qwen3_coder
from coordinator.chat.reasoning import is_open, reasoning, tags_of
from outrider.core.protocol.chat_prompt import Tool
from outrider.core.protocol.errors import FieldViolation, InvalidRequestError

TOOL_CALL_PARSERS: Final[Mapping[str, Sequence[str]]] = {
    "qwen3_coder": ("<function=", "<parameter="),
    "hermes": ("<tool_call>",),
    "deepseek_v3": (DEEPSEEK["call begin"],),
    "mistral": ("[TOOL_CALLS]",),
    "llama3_json": ("<|start_header_id|>", '"parameters": '),
}
"""vLLM's names of the families, and what the chat templates of each hold; the first that fits is taken."""

AUTO: Final = "auto"
"""Stands for the family that the template tells."""

SPECIAL_MARKERS: Final = frozenset(
    {"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]", "<|python_tag|>", "<think>", "</think>"}
    | set(DEEPSEEK.values())
)
"""Markup that is a special token in some vocabulary. Text without special tokens would hide it from a parser."""


def tool_call_parser_of(template: str) -> str | None:
    """The name of the family that a chat template is for, or None."""
    fits = (name for name, signs in TOOL_CALL_PARSERS.items() if all(sign in template for sign in signs))
    return next(fits, None)


def require_tool_call_parser(template: str, chosen: str = AUTO) -> str:
    """The name of the family whose calls are looked for: what was `chosen`, or the template's. Raises
    InvalidRequestError if neither says one."""
    name = tool_call_parser_of(template) if chosen == AUTO else chosen
    if name is None:
        raise InvalidRequestError(
            [
                FieldViolation(
                    "tools",
                    "the model's chat template does not tell how the model writes calls; leave them out, or start the "
                    f"coordinator with --tool-call-parser {'|'.join(TOOL_CALL_PARSERS)}",
                )
            ]
        )
    return name


def parser_for(
    template: str,
    tools: Sequence[Tool] | None = None,
    *,
    names: Iterator[str],
    prompt: str = "",
    family: str | None = None,
) -> Parser:
    """The parser of one answer.

    `template` is the text of the chat template that the prompt was made by. Reasoning is told apart where the template
    knows of it, tool calls where there are `tools` (see `offered_tools`) and the family is known: `family` is one of
    TOOL_CALL_PARSERS, None for the template's. All else is content. `prompt` is the rendered prompt, which may have
    begun the reasoning. `names` are what the ids of calls are made of, each of 24 letters and digits or more.
    """
    tags = tags_of(template)
    name = (family or tool_call_parser_of(template)) if tools else None

    def grammar(parser: Parser) -> Steps[None]:
        yield from parser.advance()
        if tags is not None:
            yield from reasoning(parser, tags, is_open=is_open(prompt, tags))
        if name is not None:
            yield from _calls(parser, name, tools or ())
        yield from parser.until((), parser.content)

    def new_id() -> str:
        unique = next(names)
        # Mistral's templates demand nine letters and digits.
        return unique[:9] if name == "mistral" else f"call_{unique[:24]}"

    return Parser(grammar, new_id)


def _calls(parser: Parser, family: str, tools: Sequence[Tool]) -> Steps[None]:
    functions = [tool["function"] for tool in tools]
    grammars: Mapping[str, Callable[[Parser], Steps[None]]] = {
        "qwen3_coder": partial(qwen3_coder, strings=_strings(functions)),
        "hermes": hermes,
        "deepseek_v3": deepseek_v3,
        "mistral": mistral,
        "llama3_json": partial(llama3_json, names={function["name"] for function in functions}),
    }
    return grammars[family](parser)


def _strings(functions: Sequence[Mapping[str, Any]]) -> Strings:
    return {
        function["name"]: frozenset(
            key
            for key, schema in ((function.get("parameters") or {}).get("properties") or {}).items()
            if isinstance(schema, Mapping) and schema.get("type") == "string"
        )
        for function in functions
    }
