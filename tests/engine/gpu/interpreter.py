"""Triton's interpreter in place of a GPU: kernels run on a CPU, operation by operation, in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import triton.experimental.gluon  # noqa: F401  Triton imports it at the first launch, and it wants the language as it was
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction, _patch_lang
from triton.runtime.jit import JITFunction

_LANGUAGE = (tl, tl.core, tl.math, tl.standard)


class _OfLanguage(InterpretedFunction):
    """A function of the language, which kernels call. It finds the language patched already: that takes longest."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.rewrite()(*arguments, **options)


@contextmanager
def interpreted(*modules: ModuleType) -> Iterator[None]:
    """Meanwhile the kernels of `modules` are interpreted.

    That is what TRITON_INTERPRET=1 does for a whole process from its start. Here other tests of the process compile
    kernels, so everything is put back, what the interpreter leaves behind in the language too.
    """
    before = [(module, dict(vars(module))) for module in (*_LANGUAGE, *modules)]
    for module, names in before:
        kind = _OfLanguage if module in _LANGUAGE else InterpretedFunction
        for name, content in names.items():
            if isinstance(content, JITFunction):
                setattr(module, name, kind(content.fn))
    patched = _patch_lang(vars(tl.standard)["max"].fn)
    try:
        yield
    finally:
        patched.restore()
        for module, names in before:
            vars(module).update(names)
