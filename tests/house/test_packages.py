"""What is installed is the product; the benchmark stays in the checkout."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from setuptools import find_namespace_packages

from .layers import PRODUCT

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]

WITHOUT_CHECKOUT = """
import sys

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "bench":
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Refusal())
sys.argv = ["outrider", *sys.argv[1:]]
from outrider.cli.__main__ import main
main()
"""


def test_the_product_is_packaged_and_nothing_else() -> None:
    packages = find_namespace_packages(str(ROOT), include=SETTINGS["packages"]["find"]["include"])
    assert {name.partition(".")[0] for name in packages} == PRODUCT
    assert {name.partition(".")[0] for name in SETTINGS["package-data"]} <= PRODUCT


def test_an_editable_install_finds_the_whole_checkout() -> None:
    # With this setting setuptools puts the checkout itself on the path, where it would else list packages one by one.
    assert SETTINGS["package-dir"] == {"": "."}


def test_without_a_checkout_the_command_says_where_the_benchmark_is() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_CHECKOUT, "bench", "load", "--wide"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install --editable" in done.stderr
