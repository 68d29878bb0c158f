"""What `pip install .` brings is enough for all but models: each entry point runs, or names the extra that it needs."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from outrider.cli.child import Child, Observer
from outrider.cli.ports import HOST
from outrider.client import GenerationClient
from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.rpc.worker_client import DRAFT_SERVICE

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"

BASE_ENVIRONMENT = """
import sys

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {
            "torch", "transformers", "safetensors", "llguidance", "numpy", "matplotlib", "cryptography",
        }:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refusal())
"""
"""Python runs it before anything else, in every process below. None of the refused packages comes with the base."""

ENGINE = "needs torch, transformers, safetensors, llguidance; pip install 'outrider[engine]'"
TABLE = "needs safetensors, numpy; pip install 'outrider[ngram-table]'"


def address_of_nobody() -> str:
    with socket.create_server((HOST, 0)) as reserved:
        return f"{HOST}:{reserved.getsockname()[1]}"


@pytest.fixture(autouse=True)
def base_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(BASE_ENVIRONMENT, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setenv("COLUMNS", "1000")


async def ended(arguments: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *arguments.split()),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "NO_COLOR": "1"},
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


COMMANDS = (
    ("outrider.cli bench --help", 0, "Usage"),
    ("outrider.cli generate x --address 127.0.0.1:1", 1, "`outrider up` starts the services"),
    (f"outrider.cli up --target {MODELS}/target --draft ngram", 2, f"'--target': a model {ENGINE}"),
    ("outrider.cli bench", 1, "torch is not installed: pip install --editable '.[engine,bench]'"),
    ("outrider.cli distill --help", 0, "Usage"),
    ("outrider.cli certs nowhere", 1, "making certificates needs cryptography; pip install 'outrider[certs]'"),
    ("outrider.cli distill out", 1, "torch is not installed: pip install --editable '.[engine,bench]'"),
    (f"verify_service --model {MODELS}/target", 2, f"--model (or OUTRIDER_MODEL): a model {ENGINE}"),
    (f"draft_service --model {MODELS}/draft", 2, f"{ENGINE}; or use ngram, which needs no model"),
    (f"draft_service --model ngram --ngram-table {MODELS}/ngrams.safetensors", 2, f"an n-gram table {TABLE}"),
)
"""What is run, how it ends, and what it says."""


async def test_an_entry_point_runs_or_says_what_it_needs() -> None:
    results = await asyncio.gather(*(ended(arguments) for arguments, _, _ in COMMANDS))
    for (arguments, exit_code, words), (code, said) in zip(COMMANDS, results, strict=True):
        assert words in " ".join(said.split()), arguments
        assert code == exit_code, arguments
        assert "Traceback" not in said, arguments
        assert said.count("pip install") <= 1, arguments


async def test_a_drafter_without_a_model_and_a_coordinator_serve() -> None:
    draft, coordinator = (address_of_nobody() for _ in range(2))
    drafter = Child(
        "draft",
        ["draft_service", "--model=ngram", f"--listen={draft}"],
        address=draft,
        health_service=DRAFT_SERVICE,
        observer=Observer(),
    )
    served = Child(
        "coordinator",
        ["coordinator", f"--listen={coordinator}", "--verify=127.0.0.1:1", f"--draft={draft}"],
        address=coordinator,
        health_service="",  # of the process: the coordinator itself waits for a verifier
        observer=Observer(),
    )
    try:
        for child in (drafter, served):
            await child.start()
            await child.ready()
        async with GenerationClient(coordinator) as client:
            with pytest.raises(WorkerUnavailableError, match="no verify service serves"):
                await client.server_info()
        for child in (served, drafter):
            await child.stop()
            assert child.end.result() == 0
    finally:
        for child in (served, drafter):
            await child.kill()
