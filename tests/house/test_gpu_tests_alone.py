"""Tests on a GPU can be collected where nothing but torch, transformers and pytest is installed."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = sorted((ROOT / "tests" / "gpu").glob("*.py"))

INSTALLED = {"torch", "transformers", "pytest", "huggingface_hub", "safetensors", "tokenizers"}
"""The three, and what transformers itself cannot do without."""


def imports(path: Path) -> Iterator[str]:
    """The modules that importing a file imports."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert node.level == 0
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def guards(path: Path) -> set[str]:
    """The packages without which a file skips itself, before it imports anything of ours."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    ours = [node.lineno for node in body if isinstance(node, ast.ImportFrom) and file_of(node.module or "")]
    calls = [node.value for node in body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    skips = [call for call in calls if ast.unparse(call.func) == "pytest.importorskip"]
    assert all(call.lineno < min(ours) for call in skips)
    return {ast.literal_eval(call.args[0]) for call in skips}


def file_of(module: str) -> Path | None:
    """Where a module of ours is written; None for others."""
    path = ROOT.joinpath(*module.split("."))
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)


def packages_behind(path: Path) -> dict[str, Path]:
    """The packages of others that importing a file imports, each with a file that names it."""
    found: dict[str, Path] = {}
    waiting, seen = [path], {path}
    while waiting:
        each = waiting.pop()
        for module in imports(each):
            ours = file_of(module)
            if ours is not None and ours not in seen:
                seen.add(ours)
                waiting.append(ours)
            top = module.partition(".")[0]
            if not (ROOT / top).is_dir() and top not in sys.stdlib_module_names:
                found.setdefault(top, each.relative_to(ROOT))
    return found


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_collecting_takes_torch_transformers_and_pytest_alone(path: Path) -> None:
    assert {top: at for top, at in packages_behind(path).items() if top not in INSTALLED | guards(path)} == {}


def test_the_walk_finds_what_is_behind_a_file() -> None:
    assert {"torch", "transformers"} <= packages_behind(ROOT / "tests/engine/histories.py").keys()
    assert "structlog" in packages_behind(ROOT / "tests/e2e/pair.py")
