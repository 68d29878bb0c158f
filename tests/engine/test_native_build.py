"""Each way in which machine code cannot be made or loaded is one error, which says why and what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._inductor import config as inductor

from outrider.engine import library, native
from outrider.engine.compile.just_in_time import compiler_problem
from outrider.engine.library import CannotCompileError


@pytest.fixture(autouse=True)
def nothing_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "_loaded", False)
    monkeypatch.setattr(library, "BUILT_BEFOREHAND", tmp_path / "built")


@pytest.fixture
def compiler(tmp_path: Path) -> Iterator[Path]:
    """A program that passes for a compiler when it is asked for its version, and does what its test writes."""
    path = tmp_path / "c++"
    with inductor.patch({"cpp.cxx": (None, str(path))}):
        yield path


def behaving(path: Path, commands: str) -> None:
    path.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then exit 0; fi\nwhile [ "$1" != -o ]; do shift; done\n{commands}\n'
    )
    path.chmod(0o755)


def test_a_compiler_that_is_not_there(compiler: Path, tmp_path: Path) -> None:
    assert str(compiler) in compiler_problem(torch.device("cpu"))
    with pytest.raises(CannotCompileError, match=r"there is no C\+\+ compiler\); install"):
        native.load(tmp_path / "cache")


def test_a_compiler_in_several_words(tmp_path: Path) -> None:
    """As CXX may name it elsewhere."""
    with inductor.patch({"cpp.cxx": (None, "ccache g++")}):
        assert "no C++ compiler of the name 'ccache g++'" in compiler_problem(torch.device("cpu"))


def test_headers_of_python_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with inductor.patch({"cpp.cxx": (None, "true")}):
        assert "install python3-dev" in compiler_problem(torch.device("cpu"))


def test_a_compiler_that_cannot_be_run(compiler: Path, tmp_path: Path) -> None:
    compiler.mkdir()
    assert str(compiler) in compiler_problem(torch.device("cpu"))
    with pytest.raises(CannotCompileError):
        native.load(tmp_path / "cache")


@pytest.mark.parametrize(
    ("commands", "reason"),
    [
        ("echo 'attention.cpp:1: no such header' >&2; exit 1", r"attention\.cpp:1: no such header"),
        ("echo 'No space left on device' >&2; exit 4", "No space left on device"),
        ("exit 3", "status 3"),
        ("kill -KILL $$", "status -9"),
    ],
)
def test_a_compiler_that_fails(compiler: Path, tmp_path: Path, commands: str, reason: str) -> None:
    behaving(compiler, commands)
    with pytest.raises(CannotCompileError, match=rf"cannot be built \({reason}\); .*--compile off"):
        native.load(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("commands", [": > $2", "echo 'not machine code' > $2"])
def test_a_library_that_cannot_be_loaded_is_not_kept(compiler: Path, tmp_path: Path, commands: str) -> None:
    behaving(compiler, commands)
    with pytest.raises(CannotCompileError, match=r"cannot be loaded \(.*native-.*\); .*--compile-cache"):
        native.load(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_compiler_that_writes_nothing(compiler: Path, tmp_path: Path) -> None:
    behaving(compiler, "exit 0")
    with pytest.raises(CannotCompileError, match=r"cannot be built \(No such file"):
        native.load(tmp_path / "cache")


def test_a_cache_that_cannot_be_written(compiler: Path, tmp_path: Path) -> None:
    behaving(compiler, "exit 0")
    with pytest.raises(CannotCompileError, match=r"cannot be built \(Not a directory\); .*--compile-cache"):
        native.load(compiler / "cache")


def test_nothing_is_built_where_it_could_not_be_run(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every start, for half a minute."""
    behaving(compiler, f"touch {tmp_path / 'asked'}; exit 3")
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC))
    with pytest.raises(CannotCompileError, match=r"cannot be built \(.*cache is mounted noexec\); .*--compile-cache"):
        native.load(tmp_path / "cache")
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06 cut off", b"nothing of the kind"])
def test_a_package_that_is_broken(native_operators: None, tmp_path: Path, content: bytes) -> None:
    package = tmp_path / "target.pt2"
    package.write_bytes(content)
    with pytest.raises(CannotCompileError, match=r"target\.pt2 cannot be loaded \(.*\); delete it"):
        native.Package(package)
