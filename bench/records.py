"""Results as JSON and back: dataclasses of numbers, texts, sequences, mappings and further dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

_FLAT, _NAME = "flat", "name"

FLAT: Mapping[str, Any] = {_FLAT: True}
"""Metadata of a field whose own fields stand among those of its owner. One that is None leaves none there."""

DIGITS = 4
"""Significant digits of figures in a result; no machine repeats itself to a fifth."""


def named(name: str) -> Mapping[str, Any]:
    """Metadata of a field that has another name in JSON."""
    return {_NAME: name}


def as_json(value: Any) -> Any:
    """What JSON can hold. A field that is None by default is left out where it is None."""
    if dataclasses.is_dataclass(value):
        written: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            held = getattr(value, field.name)
            if held is None and field.default is None:
                continue
            if _FLAT in field.metadata:
                written |= as_json(held)
            else:
                written[field.metadata.get(_NAME, field.name)] = as_json(held)
        return written
    if isinstance(value, Mapping):
        return {name: as_json(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [as_json(each) for each in value]
    return value


def from_json(kind: type[Record], content: Any) -> Record:
    """The record that `as_json` wrote. Raises KeyError, TypeError or ValueError for what is none."""
    return _read(kind, content)


def rounded(value: Any) -> Any:
    """What JSON can hold, with `DIGITS` significant digits in every number within it."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return value


def _read(kind: Any, content: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        read = {field.name: _read_field(field, hints[field.name], content) for field in dataclasses.fields(kind)}
        return kind(**read)  # pyright: ignore[reportCallIssue]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if content is None else _read(arguments[0], content)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {name: _read(arguments[1], each) for name, each in content.items()}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return tuple(_read(arguments[0], each) for each in content)
    return content


def _read_field(field: dataclasses.Field[Any], hint: Any, content: Any) -> Any:
    if _FLAT in field.metadata:
        kind = get_args(hint)[0] if get_args(hint) else hint
        return _read(kind, content) if any(name in content for name in _hints(kind)) else None
    name = field.metadata.get(_NAME, field.name)
    if name not in content and field.default is not dataclasses.MISSING:
        return field.default
    return _read(hint, content[name])


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
