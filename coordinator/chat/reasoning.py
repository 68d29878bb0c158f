"""Reasoning: what a model thinks before it answers, between a pair of tags at the beginning of its answer."""

from __future__ import annotations

from typing import NamedTuple

from coordinator.chat.parser import Parser, Steps


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
