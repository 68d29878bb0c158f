"""JSON scanner: follows one JSON value a character at a time and says where it ends or goes wrong (RFC 8259)."""

from __future__ import annotations

_SPACE = " \t\n\r"

_HEX = frozenset("0123456789abcdefABCDEF")

_DIGITS = "0123456789"

_NUMBER = {
    "minus": {"0": "zero", **dict.fromkeys("123456789", "integer")},
    "zero": {".": "point", "e": "exponent", "E": "exponent"},
    "integer": {**dict.fromkeys(_DIGITS, "integer"), ".": "point", "e": "exponent", "E": "exponent"},
    "point": dict.fromkeys(_DIGITS, "fraction"),
    "fraction": {**dict.fromkeys(_DIGITS, "fraction"), "e": "exponent", "E": "exponent"},
    "exponent": {"+": "exponent sign", "-": "exponent sign", **dict.fromkeys(_DIGITS, "power")},
    "exponent sign": dict.fromkeys(_DIGITS, "power"),
    "power": dict.fromkeys(_DIGITS, "power"),
}
"""What may follow in a number, by what stands last in it."""

_NUMBER_ENDS = {"zero", "integer", "fraction", "power"}

_LITERALS = {"t": "rue", "f": "alse", "n": "ull"}


class JsonScanner:
    """One value, without white space around it."""

    def __init__(self) -> None:
        self._open: list[str] = []
        """The brackets that would close what is open, outermost first."""
        self._state = "value"
        """What is expected, or what a number's last character is."""
        self._rest = ""
        """What is left of a literal."""
        self._num_hex = 0
        self._is_key = False

    @property
    def is_complete(self) -> bool:
        """Whether the value may end here."""
        return not self._open and (self._state == "end" or self._state in _NUMBER_ENDS)

    def push(self, char: str) -> bool:
        """Whether `char` goes on with the value. One that does not changes nothing that matters."""
        state = self._state
        if state == "string":
            return self._in_string(char)
        if state == "escape":
            self._num_hex = 4 if char == "u" else 0
            self._state = "hex" if char == "u" else "string"
            return char in '"\\/bfnrtu'
        if state == "hex":
            self._num_hex -= 1
            self._state = "hex" if self._num_hex else "string"
            return char in _HEX
        if state == "literal":
            goes_on = self._rest.startswith(char)
            self._rest = self._rest[1:]
            self._state = "literal" if self._rest else "end"
            return goes_on
        if state in _NUMBER:
            if char in _NUMBER[state]:
                self._state = _NUMBER[state][char]
                return True
            return state in _NUMBER_ENDS and bool(self._open) and self._after_value(char)
        if not self._open and state == "end":
            return False
        return (char in _SPACE and bool(self._open)) or self._at_token(char)

    def _in_string(self, char: str) -> bool:
        if char == '"':
            self._state = "colon" if self._is_key else "end"
        elif char == "\\":
            self._state = "escape"
        return char >= " "

    def _at_token(self, char: str) -> bool:
        match self._state:
            case "key" | "key or end" if char == '"':
                self._is_key, self._state = True, "string"
            case "colon" if char == ":":
                self._state = "value"
            case "value" | "value or end" if char not in "]}":
                return self._begin(char)
            case "key or end" | "value or end" | "end":
                return self._after_value(char)
            case _:
                return False
        return True

    def _begin(self, char: str) -> bool:
        """The first character of a value."""
        if char in "{[":
            self._open.append("}" if char == "{" else "]")
            self._state = "key or end" if char == "{" else "value or end"
        elif char == '"':
            self._is_key, self._state = False, "string"
        elif char in _LITERALS:
            self._state, self._rest = "literal", _LITERALS[char]
        elif char == "-" or char in _DIGITS:
            self._state = "minus" if char == "-" else "zero" if char == "0" else "integer"
        else:
            return False
        return True

    def _after_value(self, char: str) -> bool:
        """A character where a value, or nothing, stands before it in something that is open."""
        if char == self._open[-1]:
            self._open.pop()
        elif char == "," and self._state not in {"key or end", "value or end"}:
            self._state = "key" if self._open[-1] == "}" else "value"
            return True
        elif char not in _SPACE:
            return False
        self._state = "end"
        return True
