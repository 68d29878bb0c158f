"""Expectations: in which of the shapes that templates differ in a chat template wants its messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from jinja2 import meta, nodes

from coordinator.chat.sandbox import ENVIRONMENT, TEMPLATES_COMPILED_MAX


@dataclass(frozen=True, slots=True)
class Expectations:
    """What a template says of itself."""

    tools: bool
    """Whether it has a place for tools."""
    content_parts: bool
    """Whether it goes through the parts of a message's content; if not, content must be a string."""
    content_strings: bool
    """Whether it asks if a message's content is a string."""
    content_none: bool
    """Whether it asks if a message has no content, as one that only calls tools."""
    argument_objects: bool
    """Whether the arguments of a tool call are to be an object; if not, their JSON."""


@lru_cache(TEMPLATES_COMPILED_MAX)
def expectations_of(source: str) -> Expectations:
    """Reads them off the template's own code. Raises jinja2.TemplateSyntaxError."""
    tree = ENVIRONMENT.parse(source)
    content = _aliases(tree, "content")
    arguments = _aliases(tree, "arguments")
    content_tests = {test.name for test in tree.find_all(nodes.Test) if _is(test.node, "content", content)}
    filtered = [each.node for each in tree.find_all((nodes.Filter, nodes.Test)) if each.node is not None]
    iterated = [loop.iter for loop in tree.find_all(nodes.For)]
    called = [call.node.node for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Getattr)]
    joined = [part for sum_ in tree.find_all(nodes.Add) for part in (sum_.left, sum_.right)]
    joined += [part for each in tree.find_all((nodes.Concat, nodes.Output)) for part in each.nodes]
    return Expectations(
        tools="tools" in meta.find_undeclared_variables(tree),
        content_parts=any(_is(each, "content", content) for each in iterated),
        content_strings="string" in content_tests,
        content_none="none" in content_tests,
        argument_objects=any(_is(each, "arguments", arguments) for each in (*filtered, *iterated, *called))
        or not any(_is(each, "arguments", arguments) for each in joined),
    )


def _aliases(tree: nodes.Template, attribute: str) -> frozenset[str]:
    """Variables and parameters of macros that hold a message's `attribute` somewhere."""
    return frozenset(name for name, value in _bindings(tree) if _is(value, attribute, frozenset()))


def _bindings(tree: nodes.Template) -> Iterator[tuple[str, nodes.Node]]:
    for assignment in tree.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Name):
            yield assignment.target.name, assignment.node
    parameters = {macro.name: [argument.name for argument in macro.args] for macro in tree.find_all(nodes.Macro)}
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name):
            yield from zip(parameters.get(call.node.name, ()), call.args, strict=False)


def _is(node: nodes.Node | None, attribute: str, aliases: frozenset[str]) -> bool:
    """Whether an expression is an `attribute` itself, perhaps filtered."""
    while isinstance(node, nodes.Filter):
        node = node.node
    match node:
        case nodes.Getattr(attr=name) | nodes.Getitem(arg=nodes.Const(value=name)):
            return name == attribute
        case nodes.Name(name=name):
            return name in aliases
        case _:
            return False
