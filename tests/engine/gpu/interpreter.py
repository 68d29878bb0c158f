"""Triton's interpreter in place of a GPU: kernels run on a CPU, operation by operation, in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import triton.experimental.gluon  # noqa: F401  Triton imports it at the first launch, and it wants the language as it was
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

_LANGUAGE = (tl, tl.core, tl.math, tl.standard)


class _Function(InterpretedFunction):
    """A kernel, or what kernels call. It finds the language patched already: that takes longest."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.rewrite()(*arguments, **options)


class _Nothing:
    """What a launch has patched of a language that is patched already."""

    def restore(self) -> None:
        """Leaves it as it is."""


@contextmanager
def interpreted(*modules: ModuleType) -> Iterator[None]:
    """Meanwhile the kernels of `modules` are interpreted.

    That is what TRITON_INTERPRET=1 does for a whole process from its start. Here other tests of the process compile
    kernels, so everything is put back, what the interpreter leaves behind in the language too.
    """
    before = [(module, dict(vars(module))) for module in (*_LANGUAGE, *modules)]
    found = [
        (module, name, content.fn)
        for module, names in before
        for name, content in names.items()
        if isinstance(content, JITFunction)
    ]
    for module, name, function in found:
        setattr(module, name, _Function(function))
    # Functions of the language know one half of it, and kernels the other.
    patched = [interpreter._patch_lang(function) for function in (vars(tl.standard)["max"].fn, found[-1][2])]
    try:
        with patch.object(interpreter, "_patch_lang", lambda function: _Nothing()):
            yield
    finally:
        for scope in reversed(patched):
            scope.restore()
        for module, names in before:
            vars(module).update(names)
