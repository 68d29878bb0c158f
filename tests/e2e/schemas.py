"""JSON Schemas of every kind, each with a bound on how long its texts get."""

from __future__ import annotations

from typing import Any, Final

COMPACT: Final = {"x-guidance": {"whitespace_flexible": False}}
"""Between tokens stands nothing: short texts."""

_WORD: Final = {"type": "string", "pattern": "^[a-z]{1,5}$"}
_DIGIT: Final = {"type": "integer", "minimum": 0, "maximum": 9}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "nested objects": COMPACT | _object(a=_object(b=_object(c=_DIGIT, d={"type": "boolean"})), e={"type": "null"}),
    "optional properties": COMPACT
    | {
        "type": "object",
        "properties": {"id": _DIGIT, "note": _WORD, "done": {"type": "boolean"}},
        "required": ["id"],
        "additionalProperties": False,
    },
    "array with bounds": COMPACT | {"type": "array", "items": _DIGIT, "minItems": 2, "maxItems": 5},
    "tuple": COMPACT | {"type": "array", "prefixItems": [_WORD, _DIGIT], "items": False, "minItems": 2},
    "array of objects": COMPACT | {"type": "array", "items": _object(x=_DIGIT, y=_DIGIT), "maxItems": 3},
    "enum": COMPACT | {"enum": ["red", "reddish", "green", 7, None, {"deep": [1, 2]}]},
    "union": COMPACT | {"anyOf": [_object(cat=_WORD), _object(dog=_DIGIT), {"type": "boolean"}]},
    "union of types": COMPACT | {"type": ["integer", "string", "null"], "maxLength": 4, "minimum": -99, "maximum": 99},
    "recursion": COMPACT
    | {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": _object(
                v=_DIGIT, below={"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 2}, up={"type": "null"}
            ),
            "leaf": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/pair"}]},
            "pair": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 1},
        },
    },
    "pattern": COMPACT | _object(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,4}$"}),
    "formats": COMPACT | _object(day={"type": "string", "format": "date"}),
    "unicode": COMPACT
    | _object(größe={"enum": ["klein", "groß", "大きい", "😀"]}, wort={"type": "string", "pattern": "^[äöüß]{1,3}$"}),
    "escapes": COMPACT | _object(text={"type": "string", "maxLength": 6}),
    "numbers": COMPACT | {"type": "number", "minimum": -1.5, "maximum": 1.5, "multipleOf": 0.25},
    "constants": COMPACT | _object(kind={"const": "event"}, version={"const": 3}, source={"const": "sensor"}),
    "printed nicely": _object(name=_WORD, ages={"type": "array", "items": _DIGIT, "maxItems": 2}),
}
