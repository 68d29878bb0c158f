"""A generation in the terminal: its text as it grows, and where each part of it came from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Final

from rich.console import Console
from rich.text import Text

from outrider.client import Event, Finished, Round, Started, TokenOrigin, Tokens
from outrider.core.protocol.printable import uncontrolled

ORIGIN_STYLES: Final[Mapping[TokenOrigin, str]] = {
    TokenOrigin.ACCEPTED: "green",
    TokenOrigin.RECOVERED: "bold yellow",
    TokenOrigin.BONUS: "bold underline cyan",
    TokenOrigin.TARGET: "italic",
}
"""They differ by more than colour, so that a terminal without colours tells them apart too."""

_ORIGIN_NAMES: Final[Mapping[TokenOrigin, str]] = {
    TokenOrigin.ACCEPTED: "accepted draft",
    TokenOrigin.RECOVERED: "recovered by the target",
    TokenOrigin.BONUS: "bonus",
    TokenOrigin.TARGET: "target alone",
}

ROLLBACK_MARK: Final = "⟲"
"""Stands where the drafter's guesses were voided."""


class Display:
    """Writes a generation to a console as its events come.

    Where the console is no terminal, the generated text is all that is written, as it is, and a newline at its end.
    Several completions are written one after another in the order of their numbers, under a heading each: the first
    that has not ended as it grows, and what has come of later ones when it is their turn.
    """

    def __init__(self, console: Console, prompt: str = "", *, num_completions: int | None = None) -> None:
        """`prompt` is the text before the continuation, shown dimmed in a terminal.

        `num_completions` is what the request says, None if it says nothing: then there is one, without a heading.
        """
        self._console = console
        self._prompt = prompt
        self._num_completions = num_completions
        self._shown = 0
        """The completion that is being written."""
        self._held: defaultdict[int, list[Tokens | Finished]] = defaultdict(list)
        """Events of completions whose turn has not come."""
        self._last = "\n"

    def show(self, event: Event) -> None:
        """Writes one event, now or when it is its turn. Reports of rounds have no place in a text."""
        if isinstance(event, Started):
            self._started = event
            self._begin()
        elif isinstance(event, Round):
            return
        elif event.completion == self._shown:
            self._continue(event)
        else:
            self._held[event.completion].append(event)

    def _begin(self) -> None:
        if self._num_completions is not None:
            title = f"completion {self._shown}, seed {self._started.seed_of(self._shown)}"
            if self._console.is_terminal:
                self._console.rule(Text(title), style="dim")
            else:
                self._write(f"==> {title} <==\n")  # as head and tail head several files
        if self._console.is_terminal:
            self._write(self._prompt, "dim")

    def _continue(self, event: Tokens | Finished) -> None:
        if isinstance(event, Tokens):
            self._show_tokens(event)
            return
        self._write(event.text)
        if self._last != "\n":
            self._write("\n")
        self._shown += 1
        if self._shown < (self._num_completions or 1):
            self._begin()
            for held in self._held.pop(self._shown, ()):
                self._continue(held)

    def _show_tokens(self, event: Tokens) -> None:
        if not self._console.is_terminal:
            self._write(event.text)
            return
        for index, token in enumerate(event.tokens, 1):
            if event.rolled_back and index == len(event.tokens):
                self._write(ROLLBACK_MARK, "dim")
            self._write(token.text, ORIGIN_STYLES[token.origin])

    def _write(self, text: str, style: str = "") -> None:
        if not text:
            return
        self._last = text[-1]
        if self._console.is_terminal:
            self._console.out(uncontrolled(text), style=style, highlight=False, end="")
        else:
            self._console.file.write(text)
            self._console.file.flush()


def legend() -> Text:
    """What the styles and the mark mean."""
    line = Text()
    for origin, style in ORIGIN_STYLES.items():
        line.append(_ORIGIN_NAMES[origin], style).append("  ")
    return line.append(f"{ROLLBACK_MARK} rollback", "dim")
