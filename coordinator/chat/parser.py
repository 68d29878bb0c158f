"""Parser: an answer's text, cut anyhow, to deltas.

A grammar is a coroutine that takes one character at a time and looks one ahead, so where the text is cut cannot matter.
White space beside markup belongs to the markup and is left out. What looks like a call and is none is content.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Generator, Sequence
from functools import partial
from typing import TypeVar

from coordinator.chat.deltas import Content, Delta, Reasoning, ToolCallArguments, ToolCallStart
from coordinator.chat.json_scanner import JsonScanner

T = TypeVar("T")
Steps = Generator[None, str, T]
"""Yields for each character that it needs."""

_Kind = Callable[[str], Delta]

END = ""
"""Stands for a character where the text ends."""

NAME_CHARACTERS_MAX = 256
"""Longest name of a call. Longer ones are no names: until a name ends nothing of the call can be passed on."""


class Parser:
    """One answer."""

    def __init__(self, grammar: Callable[[Parser], Steps[None]], new_id: Callable[[], str]) -> None:
        self.char = END
        """The next character."""
        self.held = ""
        """What has been read of markup that may turn out to be none."""
        self._new_id = new_id
        self._num_calls = 0
        self._unread: list[str] = []
        """Characters to take once more, the next one last."""
        self._space = ""
        """White space that will be left out if markup follows."""
        self._space_kind: _Kind = Content
        self._is_beside_markup = False
        self._num_doubtful = 0
        """How much of what is held is the marker that it was opened with."""
        self._arguments: _Kind = Content
        self._deltas: list[Delta] = []
        self._kind: _Kind = Content
        self._run: list[str] = []
        """Texts of one kind after the last of the deltas."""
        self._steps = grammar(self)
        next(self._steps)

    def push(self, text: str) -> Sequence[Delta]:
        """Adds text. Returns what became certain."""
        for char in text:
            self._steps.send(char)
        return self._taken()

    def finish(self) -> Sequence[Delta]:
        """No more text will come: what was held back. The parser is of no use afterwards."""
        try:
            self._steps.send(END)
        except StopIteration:
            if self._space:
                self._write(self._space_kind, self._space)
            return self._taken()
        raise AssertionError("a grammar goes on behind the end")

    def advance(self) -> Steps[None]:
        """Takes the next character."""
        self.char = self._unread.pop() if self._unread else (yield)

    def keep(self) -> Steps[None]:
        """Holds the character and takes the next one."""
        self.held += self.char
        yield from self.advance()

    def space(self) -> Steps[None]:
        """Holds white space, as far as it goes."""
        while self.char.isspace():
            yield from self.keep()

    def literal(self, *texts: str) -> Steps[str]:
        """Holds one of `texts` and returns which; the empty string if none comes, of which it may hold a part."""
        seen = ""
        while self.char and any(text.startswith(seen + self.char) for text in texts):
            seen += self.char
            yield from self.keep()
            if seen in texts:
                return seen
        return ""

    def name(self, ends: str) -> Steps[str]:
        """Holds what stands before one of the characters `ends`; the empty string if that can be no call's name."""
        start = len(self.held)
        while self.char and self.char not in ends and not self.char.isspace():
            yield from self.keep()
            if len(self.held) - start > NAME_CHARACTERS_MAX:
                return ""
        return self.held[start:] if self.char else ""

    def json_text(self) -> Steps[str]:
        """Holds one JSON value, and returns it; the empty string if it is none."""
        start = len(self.held)
        scanner = JsonScanner()
        while self.char and scanner.push(self.char):
            yield from self.keep()
        return self.held[start:] if scanner.is_complete else ""

    def json_string(self) -> Steps[str]:
        """Holds a JSON string that could be a name, and returns what it says; the empty string if it is none."""
        start = len(self.held)
        scanner = JsonScanner()
        while self.char and (len(self.held) > start or self.char == '"') and scanner.push(self.char):
            yield from self.keep()
            if len(self.held) - start > NAME_CHARACTERS_MAX:
                return ""
        text = json.loads(self.held[start:]) if scanner.is_complete else ""
        return text if text.isprintable() else ""

    def until(self, markers: Collection[str], write: Callable[[str], None]) -> Steps[str]:
        """Passes text on to `write`, by the character, up to one of `markers`, none of which begins another one.

        Returns the marker, which it has taken; the empty string if the text ends before.
        """
        seen = ""
        beginnings = {marker[0] for marker in markers}
        while self.char:
            if not seen and self.char not in beginnings:  # most text; all else is slower
                write(self.char)
                yield from self.advance()
                continue
            seen += self.char
            while seen and not any(marker.startswith(seen) for marker in markers):
                write(seen[0])
                seen = seen[1:]
            yield from self.advance()
            if seen in markers:
                return seen
        for char in seen:
            write(char)
        return END

    def content(self, char: str) -> None:
        """Passes a character on as content."""
        self._write_spaced(Content, char)

    def reasoning(self, char: str) -> None:
        """Passes a character on as reasoning."""
        self._write_spaced(Reasoning, char)

    def open(self, marker: str) -> None:
        """Holds a marker that `until` has taken."""
        self.held = marker
        self._num_doubtful = len(marker)

    def markup(self) -> None:
        """What is held, and white space on both sides of it, is markup for certain."""
        self.held = self._space = ""
        self._num_doubtful = 0
        self._is_beside_markup = True

    def give_up(self) -> Steps[None]:
        """What is held is no markup: the marker that it was opened with is content, all else is read once more."""
        for char in self.held[: self._num_doubtful]:
            self.content(char)
        self._unread += [self.char, *reversed(self.held[self._num_doubtful :])]
        self.held = ""
        self._num_doubtful = 0
        yield from self.advance()

    def close(self, *texts: str) -> Steps[None]:
        """Leaves out `texts`, in this order, as far as they come, and white space between them."""
        for text in texts:
            yield from self.space()
            if not (yield from self.literal(text)):
                yield from self.give_up()
                return
            self.markup()

    def start_call(self, name: str) -> None:
        """What is held begins a call for certain."""
        self.markup()
        self._end_run()
        self._arguments = partial(ToolCallArguments, self._num_calls)
        self._deltas.append(ToolCallStart(self._num_calls, self._new_id(), name))
        self._num_calls += 1

    def arguments(self, text: str) -> None:
        """Passes on more of the arguments of the call that was started last."""
        self._write(self._arguments, text)

    def json_arguments(self) -> Steps[bool]:
        """Passes a JSON value on as arguments as it comes. Returns whether it has come to its end."""
        scanner = JsonScanner()
        while self.char and scanner.push(self.char):
            self.arguments(self.char)
            yield from self.advance()
        return scanner.is_complete

    def _write_spaced(self, kind: _Kind, char: str) -> None:
        if not char.isspace():
            self._write(kind, self._space + char)
            self._space = ""
            self._is_beside_markup = False
        elif not self._is_beside_markup:
            self._space += char
            self._space_kind = kind

    def _write(self, kind: _Kind, text: str) -> None:
        if kind is not self._kind:
            self._end_run()
            self._kind = kind
        self._run.append(text)

    def _end_run(self) -> None:
        if self._run:
            self._deltas.append(self._kind("".join(self._run)))
            self._run = []

    def _taken(self) -> Sequence[Delta]:
        self._end_run()
        deltas, self._deltas = self._deltas, []
        return deltas
