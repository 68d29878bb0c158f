"""Sandbox: Jinja as transformers gives it to chat templates, where a template reaches nothing but what it is handed."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

TEMPLATES_COMPILED_MAX = 8
"""Compiled templates that are kept: those of the target and of the next one, each perhaps with one for tools."""


class RefusedError(Exception):
    """The template itself refuses what it was given, in its own words."""


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks what a model is trained on; it renders what it holds."""

    tags = {"generation"}  # noqa: RUF012  Jinja's own annotation is of an instance

    def parse(self, parser: Parser) -> nodes.Node:
        """The block without its tags."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """`namespace(…)`, without names that begin with an underscore, by which Python's insides are called."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # "self" may be one of the names
        for name in dict(*args[1:], **kwargs):
            _check_name(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class _Dict:
    """`dict(…)`, without the class's own attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As Python's."""
        return dict.fromkeys(*args)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    functions: dict[str, Callable[..., Any]] = {
        "raise_exception": _refuse,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    environment.globals.update(functions)
    environment.filters["tojson"] = _tojson
    return environment


def _refuse(message: object) -> NoReturn:
    raise RefusedError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where Jinja's own filter makes it safe for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace must not hold {name!r}")


ENVIRONMENT = _environment()


@lru_cache(TEMPLATES_COMPILED_MAX)
def compiled(source: str) -> jinja2.Template:
    """A template, compiled once. Raises jinja2.TemplateSyntaxError."""
    return ENVIRONMENT.from_string(source)
