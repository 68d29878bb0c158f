"""Which library of native operators a worker takes, and what it says where there is none."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.utils.cpp_extension import include_paths

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine import library

OLD = "avx2 fma bmi1 bmi2 f16c movbe"
NEW = f"{OLD} avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.fixture
def beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The libraries of a package, one a level, the best one first; nothing is compiled for them."""
    monkeypatch.setattr(library, "BUILT_BEFOREHAND", tmp_path / "built")
    monkeypatch.setattr(library, "_build", lambda path, flags: path.touch())
    return list(library.build_beforehand())


@pytest.mark.parametrize(
    ("features", "level"),
    [(f"{NEW} avx512_bf16 avx512_vnni amx_bf16", 0), (NEW, 1), (f"{OLD} avx_vnni", 2), (OLD, 3)],
)
def test_the_best_that_the_processor_runs_is_taken(
    beforehand: list[Path], features: str, level: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_features", lambda: frozenset(features.split()))
    assert library.find(tmp_path) == beforehand[level]


def test_an_old_processor_and_another_torch_get_what_is_built_here(
    beforehand: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_features", lambda: frozenset(["sse4_2"]))
    assert library.find(tmp_path) is None
    built = library.build(tmp_path)
    assert library.find(tmp_path) == built
    monkeypatch.setattr(library, "_features", lambda: frozenset(NEW.split()))
    assert library.find(tmp_path) in beforehand
    monkeypatch.setattr("torch.__version__", "0.0.0")
    assert library.find(tmp_path) is None


def test_of_two_that_need_it_one_builds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(path: Path, flags: tuple[str, ...]) -> None:
        other = os.open(library._FOLDER, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
        path.write_text("built")

    monkeypatch.setattr(library, "_build", build)
    built = library.build(tmp_path)
    built.write_text("by the first")
    assert library.build(tmp_path).read_text() == "by the first"


@pytest.mark.parametrize(
    "source", [path for path in library.SOURCES if path.suffix == ".cpp" and "__AMX_BF16__" in path.read_text()]
)
def test_what_only_processors_with_tiles_run_is_code(source: Path) -> None:
    """No other test compiles it where the processor has none."""
    included = [f"-I{path}" for path in include_paths()]
    command = [get_cpp_compiler(), *library._FLAGS, *library.LEVELS[0].flags, *included, "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_the_compiler_minds_is_said(tmp_path: Path) -> None:
    (tmp_path / "included.h").write_text("int x = ;")
    (tmp_path / "source.cpp").write_text('#include "included.h"')
    with pytest.raises(UnsupportedModelError, match=r"included.h:1:9: error: expected"):
        library._run([[get_cpp_compiler(), "-fsyntax-only", str(tmp_path / "source.cpp")]])


def test_without_a_compiler_the_user_is_told_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(library, "get_cpp_compiler", none)
    with pytest.raises(UnsupportedModelError, match=r"cannot be built \(there is no C\+\+ compiler\); install"):
        library.build(tmp_path)


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnsupportedModelError, match=r"cannot be built .*--compile-cache"):
        library.build(tmp_path / "file")
