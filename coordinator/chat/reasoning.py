"""Reasoning: what a model thinks before it answers, between a pair of tags at the beginning of its answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from coordinator.chat.lark import SPACE, TokenIds, embedded, regex_escaped, token_but
from coordinator.chat.parser import Parser, Steps
from outrider.core.protocol.grammar import Grammar, GrammarKind


class Tags(NamedTuple):
    """Where reasoning begins and ends."""

    begin: str
    end: str


TAGS = (Tags("<think>", "</think>"), Tags("[THINK]", "[/THINK]"))
"""As DeepSeek, Qwen and most others write them, and as Mistral does."""


def tags_of(template: str) -> Tags | None:
    """The tags of the models that a chat template is for; None if it knows none."""
    return next((tags for tags in TAGS if tags.end in template), None)


def is_open(prompt: str, tags: Tags) -> bool:
    """Whether a prompt ends in reasoning, so that the answer does not begin with the tag."""
    return prompt.rstrip().endswith(tags.begin)


def reasoning(parser: Parser, tags: Tags, *, is_open: bool) -> Steps[None]:
    """Reads reasoning, if there is any, up to the answer proper. Behind a prompt that has opened it a model may all the
    same begin with the tag."""
    yield from parser.space()
    if (yield from parser.literal(tags.begin)):
        parser.markup()
    else:
        yield from parser.give_up()
        if not is_open:
            return
        parser.markup()
    if (yield from parser.until((tags.end,), parser.reasoning)):
        parser.markup()


def behind_reasoning(
    grammar: Grammar, tags: Tags, prompt: str, *, token_ids: TokenIds, eos_token_ids: Iterable[int]
) -> Grammar:
    """The grammar of an answer whose reasoning is free. `token_ids` has the tags that are one token.

    The grammar begins behind reasoning that the prompt has opened, and at once where the prompt has closed it. Else the
    model may reason first, or not.
    """
    if grammar.begins_after or prompt.rstrip().endswith(tags.end):
        return grammar
    answer = f"answer: {embedded(grammar)}"
    if is_open(prompt, tags):
        return Grammar(GrammarKind.LARK, f"start: {SPACE} answer\n{answer}", begins_after=tags.end)
    if token_ids.keys() >= {*tags}:
        begin, end = (token_ids[tag] for tag in tags)
        thought = f"thought: <[{begin}]> {token_but([end, *eos_token_ids])}* <[{end}]>"
    else:
        thought = f"thought[lazy]: /{regex_escaped(tags.begin)}(?s:.*){regex_escaped(tags.end)}/"
    return Grammar(GrammarKind.LARK, f"start: (thought {SPACE})? answer\n{thought}\n{answer}")
