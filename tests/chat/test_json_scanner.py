"""The scanner goes along with what Python's own parser reads, and with nothing else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.chat.json_scanner import JsonScanner


def scanned(text: str) -> int:
    """How many characters go on with the value; -1 if they are no whole value."""
    scanner = JsonScanner()
    for number, char in enumerate(text):
        if not scanner.push(char):
            return number if scanner.is_complete else -1
    return len(text) if scanner.is_complete else -1


def is_json(text: str) -> bool:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return text == text.strip(" \t\n\r")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, st.sampled_from([None, 1]), st.booleans())
def test_every_value_is_gone_along_with_to_its_end(value: object, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert scanned(text) == len(text)
    if text[0] in '{["':
        assert scanned(text + "}") == len(text), "it ends where the value does"
        assert all(scanned(text[:end]) == -1 for end in range(len(text))), "and not before"


@given(st.text('{}[]",:\\ \n0123.eE+-tfnua/\x01é', max_size=7))
def test_it_takes_what_is_json(text: str) -> None:
    assert (scanned(text) == len(text)) == is_json(text)


@pytest.mark.parametrize(
    "text",
    ["01", "1.", "-", "1e", "1e+", ".5", "+1", "tru", "nulll", '"\\x"', '"\\u12g4"', '"\n"', "[1,]", "{,}", "[}"],
)
def test_it_takes_nothing_else(text: str) -> None:
    assert scanned(text) != len(text)
    assert scanned(f"[{text}]") != len(text) + 2
