"""Which library of native operators a worker takes, and what it says where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch._inductor.exc import InvalidCxxCompiler

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
