"""Each way in which look-ups cannot be made machine code is one error that says why, and Python's tables take over."""

from __future__ import annotations

import os
from ctypes import PyDLL
from pathlib import Path
from types import SimpleNamespace

import pytest

from outrider.core.propose.ngram import NgramTable
from outrider.lookup import library
from outrider.lookup.library import CannotBuildError
from outrider.lookup.ngrams import NativeNgramTable
from outrider.worker.lookups import native_lookups, ngram_tables


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The only compiler that there is: a program whose commands its test writes."""
    monkeypatch.setattr(library, "BUILT_BEFOREHAND", tmp_path / "built")
    monkeypatch.setattr(library, "COMPILERS", (str(tmp_path / "c++"),))
    return tmp_path / "c++"


def behaving(path: Path, commands: str) -> None:
    path.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n{commands}\n')
    path.chmod(0o755)


def test_a_compiler_that_is_not_there(compiler: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotBuildError, match=r"there is no C\+\+ compiler"):
        library.load(tmp_path / "cache")
    assert native_lookups(tmp_path / "cache") is None
    assert isinstance(ngram_tables(None, None)(), NgramTable)


@pytest.mark.parametrize(
    ("commands", "reason"),
    [("echo 'ngrams.cpp:1: no' >&2; exit 1", r"ngrams\.cpp:1: no"), ("exit 3", "status 3"), ("exit 0", "No such file")],
)
def test_a_compiler_that_fails_leaves_nothing(compiler: Path, tmp_path: Path, commands: str, reason: str) -> None:
    behaving(compiler, commands)
    with pytest.raises(CannotBuildError, match=reason):
        library.load(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_library_that_is_broken_is_not_kept(compiler: Path, tmp_path: Path) -> None:
    behaving(compiler, "echo 'not machine code' > $2")
    with pytest.raises(CannotBuildError, match="cannot be loaded"):
        library.load(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_nothing_is_built_where_it_could_not_be_run(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaving(compiler, f"touch {tmp_path / 'asked'}; exit 3")
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC))
    with pytest.raises(CannotBuildError, match="cache is mounted noexec"):
        library.load(tmp_path / "cache")
    assert not (tmp_path / "asked").exists()


def test_a_cache_that_cannot_be_written(compiler: Path, tmp_path: Path) -> None:
    behaving(compiler, "exit 0")
    with pytest.raises(CannotBuildError, match="Not a directory"):
        library.load(compiler / "cache")


def test_what_came_with_the_package_needs_no_compiler(
    native: PyDLL, compiler: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(library, "BUILT_BEFOREHAND", Path(native._name).parent)
    found = native_lookups(tmp_path / "cache")
    assert isinstance(ngram_tables(found, None)(), NativeNgramTable)
    assert not (tmp_path / "cache").exists()
