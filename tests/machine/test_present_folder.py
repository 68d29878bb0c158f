"""Files in the present folder are nobody's packages, however Python came to look there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from outrider.machine import present_folder
from outrider.machine.present_folder import leave_out_present_folder

ROOT = Path(__file__).parents[2]
STANDARD_LIBRARY = os.path.dirname(os.__file__)
SHADOWING = ("asyncio", "bench", "coordinator", "grpc", "json", "pydantic", "rich", "structlog", "tokenizers", "typer")
"""What a user's own file may be called, that our programs import."""


def joined(*entries: str) -> str:
    return os.pathsep.join(entries)


@pytest.mark.parametrize("spelt", ["", ".", "{present}", "{present}/../{name}"])
def test_it_is_left_out_for_this_process_and_for_those_that_it_starts(
    spelt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entry = spelt.format(present=tmp_path, name=tmp_path.name)
    path, environ = [entry, "/other", STANDARD_LIBRARY], {"PYTHONPATH": joined(entry, "/other"), "OTHER": entry}
    leave_out_present_folder(path, environ)
    assert path == ["/other", STANDARD_LIBRARY]
    assert environ == {"PYTHONPATH": "/other", "OTHER": entry}


def test_what_is_installed_in_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = ["", STANDARD_LIBRARY, str(tmp_path)]
    leave_out_present_folder(path, environ := {})
    assert (path, environ) == ([STANDARD_LIBRARY, str(tmp_path)], {})


def test_it_stays_where_it_holds_our_own_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(present_folder, "_PACKAGES", os.path.realpath(tmp_path))
    path, environ = ["", STANDARD_LIBRARY], {"PYTHONPATH": "."}
    leave_out_present_folder(path, environ)
    assert (path, environ) == (["", STANDARD_LIBRARY], {"PYTHONPATH": "."})


def test_a_process_in_one_that_was_deleted_goes_on_in_the_topmost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    path, environ = ["", "/other"], {"PYTHONPATH": joined("", "/other")}
    leave_out_present_folder(path, environ)
    assert os.getcwd() == os.sep
    assert (path, environ) == (["/other"], {"PYTHONPATH": "/other"})


@pytest.mark.parametrize(
    ("program", "without"),
    [
        (("-P", "-m", "outrider.cli"), ()),
        (("-c", "from outrider.cli.__main__ import main; main()"), ()),
        (("-m", "draft_service"), ()),
        (("-m", "verify_service"), ()),
        (("-m", "coordinator"), ("coordinator",)),  # Python itself takes that file
    ],
)
def test_every_program_starts_among_them(program: tuple[str, ...], without: tuple[str, ...], tmp_path: Path) -> None:
    for name in {*SHADOWING} - {*without}:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the user has a {name}.py')")
    done = subprocess.run(
        [sys.executable, *program, "--version"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": joined("", str(ROOT))},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
