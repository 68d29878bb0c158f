"""Printable text: what a model, a peer or a client wrote, with no power over the terminal that shows it."""

from __future__ import annotations

from typing import Final

PRINTABLE_CHARACTERS_MAX: Final = 256
"""Most characters of an id or name that is shown: more than any of ours has."""

_PICTURES: Final = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
    # They turn the direction of what follows them, so that it reads as what it is not.
    **dict.fromkeys([0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
}
"""Control characters, and what is shown in their place."""


def uncontrolled(text: str) -> str:
    """`text` with pictures in place of control characters; its lines and tabs stay."""
    return text.translate(_PICTURES)


def printable(text: str, num_characters_max: int = PRINTABLE_CHARACTERS_MAX) -> str:
    """`text` in one line of bounded length, without control characters."""
    if len(text) > num_characters_max:
        text = text[: num_characters_max - 1] + "…"
    return uncontrolled(text).replace("\n", "␊").replace("\t", "␉")
