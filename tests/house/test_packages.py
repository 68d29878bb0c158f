"""What is installed is the product; the benchmark stays in the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from setuptools import find_namespace_packages

from outrider.worker.extras import ENGINE, NGRAM_TABLE

from .layers import PRODUCT

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETTINGS: dict[str, Any] = PROJECT["tool"]["setuptools"]


def test_the_product_is_packaged_and_nothing_else() -> None:
    packages = find_namespace_packages(str(ROOT), include=SETTINGS["packages"]["find"]["include"])
    assert {name.partition(".")[0] for name in packages} == PRODUCT
    assert {name.partition(".")[0] for name in SETTINGS["package-data"]} <= PRODUCT


def test_an_editable_install_finds_the_whole_checkout() -> None:
    # With this setting setuptools puts the checkout itself on the path, where it would else list packages one by one.
    assert SETTINGS["package-dir"] == {"": "."}


@pytest.mark.parametrize(("extra", "looked_for"), [("engine", ENGINE), ("ngram-table", NGRAM_TABLE)])
def test_a_service_looks_for_all_that_an_extra_brings(extra: str, looked_for: tuple[str, ...]) -> None:
    """One package that is missing among them, as where torch was installed by hand, would else end in a traceback."""
    brought = PROJECT["project"]["optional-dependencies"][extra]
    assert {Requirement(text).name for text in brought} == {*looked_for}


@pytest.mark.parametrize("command", ["bench", "distill"])
def test_without_a_checkout_the_command_says_where_it_is(command: str, tmp_path: Path) -> None:
    """Beside packages of other people by the same names."""
    for name in PRODUCT:
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("bench", "recipes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cli.py").write_text("raise SystemExit('another package')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "outrider.cli", command, "load", "--wide"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install --editable" in done.stderr
