"""Two checkouts side by side: whose sources run, and a whole comparison on tiny models."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bench.against.options import AgainstOptions
from bench.against.result import show
from bench.against.run import run
from bench.compare.measuring import order
from bench.records import as_json
from bench.stack.checkout import HERE, NotACheckoutError, checkout_at
from bench.stack.models import Models
from tests.e2e.stack import save_tiny
from tests.engine.tiny_models import build

pytestmark = pytest.mark.usefixtures("forked")

STRANGER = """
import outrider, sys
print(outrider.__file__, [__spec__.parent, *sys.argv[1:]])
"""


def test_services_of_a_checkout_run_its_own_sources(tmp_path: Path) -> None:
    for folder in ("outrider", "coordinator", "draft_service", "verify_service"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "coordinator" / "__main__.py").write_text(STRANGER)
    checkout = checkout_at(tmp_path)
    assert checkout.python == Path(sys.executable), "it has no environment of its own"
    command = [sys.executable, "-m", *checkout.command("coordinator"), "--listen=nowhere"]
    held, holding = os.pipe()
    done = subprocess.run(command, cwd=HERE.root, stdin=held, capture_output=True, text=True, check=True)
    os.close(held)
    os.close(holding)
    assert done.stdout.split(maxsplit=1) == [
        str(tmp_path / "outrider" / "__init__.py"),
        "['coordinator', '--listen=nowhere']\n",
    ]


def test_a_folder_without_sources_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(NotACheckoutError, match="no folder outrider"):
        checkout_at(tmp_path)


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c"]])
def test_everyone_is_first_as_often_and_neighbours_change(names: list[str]) -> None:
    orders = [order(names, index) for index in range(2 * len(names))]
    assert all(sorted(each) == names for each in orders)
    assert all([each[0] for each in orders].count(name) == 2 for name in names)
    assert len(set(map(tuple, orders))) == min(2 * len(names), 6 if len(names) == 3 else 2)


def test_a_checkout_against_itself(tmp_path: Path) -> None:
    target = save_tiny(build("llama", layers=2), tmp_path / "target")
    options = AgainstOptions(
        other=HERE.root,
        models=Models(target=str(target), draft="ngram", dtype="float32", compile="off"),
        num_clients=2,
        num_prompts=2,
        warm_ups=1,
        num_lives=1,
        max_tokens=8,
        temperatures=(0.8,),
    )
    result = run(options, Console(quiet=True))
    [found] = result.comparisons
    assert found.num_identical == found.num_answers == 3 * 4
    assert found.time_ratio.low <= found.time_ratio.value <= found.time_ratio.high
    assert found.this.ms_per_token > 0.0
    assert found.other.acceptance_length >= 1.0
    kept = json.loads(json.dumps(as_json(result)))
    assert kept["benchmark"] == "outrider bench against"
    assert kept["settings"]["target"] == "target"
    console = Console(record=True, width=118, file=io.StringIO())
    show(result, console)
    assert f"{found.time_ratio.value:.3f} (" in console.export_text()
