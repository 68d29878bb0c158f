"""Deltas: what a parser makes of an answer, piece by piece, as OpenAI's chat interface has it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """More of what the model says to the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A tool call begins. Its arguments follow, before those of any other call."""

    index: int
    """Number of the call within its answer, from 0 on."""
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of a call's arguments: the texts of a call are one JSON object, if the answer does not break off in it."""

    index: int
    text: str


Delta = Content | Reasoning | ToolCallStart | ToolCallArguments
