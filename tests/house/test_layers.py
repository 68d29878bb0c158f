"""The rules of the house hold, and whoever breaks one is found."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from .layers import FILE_LINES_MAX, GENERATED, LAYERS, PRODUCT, PRODUCT_LINES_MAX, PRODUCT_LINES_MEDIAN_MAX, check

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (*sorted(PRODUCT), "tests", "bench", "recipes")

IMPORT_EVERYTHING_WITHOUT_TORCH = """
import importlib, pkgutil, sys

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refusal())
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        importlib.import_module(module.name)
"""


def test_the_rules_hold() -> None:
    sources = {
        path.relative_to(ROOT): path.read_text(encoding="utf-8")
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    tops = {path.parts[0] for path in sources}
    assert tops >= PRODUCT, "the walk misses a part of the product"
    found = [violation for path, source in sources.items() for violation in check(PurePosixPath(path), source)]
    assert not found, "\n".join(map(str, found))


def test_files_of_the_product_are_short() -> None:
    lengths = [
        len(path.read_text(encoding="utf-8").splitlines())
        for folder in PRODUCT
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py" and not path.relative_to(ROOT).is_relative_to(GENERATED)
    ]
    assert statistics.median(lengths) <= PRODUCT_LINES_MEDIAN_MAX


def test_the_round_loop_is_written_once() -> None:
    """Whoever drives sessions, a service or a clock of its own, asks a scheduler what is next."""
    steps = re.compile(r"\b(most_probable|choose_expansions)\(|\._?select\(|\.state\.decide\(")
    found = {
        str(path.relative_to(ROOT))
        for folder in (*PRODUCT, "bench/simulate", "bench/stack", "tests/sim")
        for path in (ROOT / folder).rglob("*.py")
        if steps.search(path.read_text(encoding="utf-8"))
    }
    written, said = "outrider/core/schedule", ("verify/selection.py", "verify/session.py", "draft/expansions.py")
    assert found == {
        *(f"outrider/core/{file}" for file in said),
        *(f"{written}/{name}.py" for name in ("verify_scheduler", "draft_scheduler", "draft_run")),
    }


def test_every_layer_exists() -> None:
    paths = {name: ROOT / name.replace(".", "/") for name in LAYERS}
    assert [
        name
        for name, path in paths.items()
        if not (path / "__init__.py").is_file() and not path.with_suffix(".py").is_file()
    ] == []


def test_what_runs_beside_the_workers_runs_without_torch() -> None:
    packages = ["outrider.core", "outrider.rpc", "outrider.telemetry", "outrider.client", "outrider.cli", "coordinator"]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING_WITHOUT_TORCH, *packages], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        # Downwards only.
        ("outrider/core/estimate/a.py", "import torch", "outrider.core.estimate must not import torch"),
        ("outrider/core/estimate/a.py", "import hypothesis", "must not import hypothesis"),
        ("outrider/core/estimate/a.py", "from outrider.rpc import wire", "must not import outrider.rpc.wire"),
        ("outrider/core/estimate/a.py", "from outrider import rpc", "must not import outrider.rpc"),
        ("outrider/core/estimate/a.py", "from ... import rpc", "must not import outrider.rpc"),
        ("outrider/core/estimate/a.py", "from ...engine.jobs import Job", "must not import outrider.engine.jobs.Job"),
        ("outrider/core/estimate/a.py", "def f():\n    import torch", "must not import torch"),
        ("outrider/core/estimate/a.py", "if TYPE_CHECKING:\n    import grpc", "must not import grpc"),
        ("outrider/core/estimate/a.py", "import importlib\nimportlib.import_module('torch')", "must not import torch"),
        ("outrider/core/estimate/a.py", "__import__('torch')", "must not import torch"),
        *[
            ("outrider/core/estimate/a.py", f"import {module}", f"must do without {module}")
            for module in ("asyncio", "time", "random", "logging", "threading")
        ],
        ("outrider/core/estimate/a.py", "from time import monotonic", "must do without time"),
        ("outrider/engine/a.py", "import asyncio", "must do without asyncio"),
        ("outrider/engine/a.py", "import grpc.aio", "must not import grpc"),
        ("outrider/engine/a.py", "import outrider.rpc.wire", "must not import outrider.rpc.wire"),
        ("outrider/engine/a.py", "import outrider.telemetry", "must not import outrider.telemetry"),
        ("outrider/engine/kv_cache/a.py", "from outrider.engine.jobs import Job", "outrider.engine.kv_cache must not"),
        (
            "outrider/engine/attention/a.py",
            "import outrider.engine.compile.graphs",
            "outrider.engine.attention must not",
        ),
        ("outrider/engine/sample/a.py", "from outrider.engine import engine", "must not import outrider.engine.engine"),
        ("outrider/engine/engine.py", "from outrider.engine.load import self_check", "outrider.engine must not"),
        ("outrider/rpc/a.py", "import torch", "must not import torch"),
        ("outrider/rpc/wire/a.py", "import transformers", "must not import transformers"),
        ("outrider/telemetry/a.py", "import grpc", "must not import grpc"),
        ("outrider/cli/a.py", "import torch.nn", "must not import torch"),
        ("outrider/cli/a.py", "import coordinator", "must not import coordinator"),
        ("outrider/client/a.py", "import outrider.cli", "must not import outrider.cli"),
        ("coordinator/a.py", "import torch", "must not import torch"),
        ("coordinator/a.py", "from transformers import AutoTokenizer", "must not import transformers"),
        ("coordinator/a.py", "import outrider.engine", "must not import outrider.engine"),
        ("coordinator/a.py", "import outrider.worker", "must not import outrider.worker"),
        ("coordinator/a.py", "from opentelemetry.sdk.trace import TracerProvider", "set up in outrider.telemetry"),
        ("outrider/core/estimate/a.py", "from opentelemetry import trace", "must not import opentelemetry"),
        # Rooms of the core.
        *[
            (
                f"outrider/core/{room}/a.py",
                f"from outrider.core.{above}.a import b",
                f"must not import outrider.core.{above}.a",
            )
            for room, above in (
                ("protocol", "estimate"),
                ("estimate", "propose"),
                ("propose", "verify"),
                ("verify", "draft"),
                ("draft", "verify"),
                ("verify", "schedule"),
                ("coordinate", "draft"),
                ("coordinate", "schedule"),
                ("schedule", "coordinate"),
            )
        ],
        ("outrider/core/verify/a.py", "from ..draft import session", "must not import outrider.core.draft.session"),
        ("outrider/core/a.py", "", "belongs to no layer"),
        # Siblings.
        ("coordinator/a.py", "import draft_service", "must not import draft_service"),
        ("draft_service/a.py", "from verify_service import verifier", "must not import verify_service"),
        ("verify_service/a.py", "from coordinator.text import x", "must not import coordinator"),
        ("draft_service/a.py", "import outrider.cli", "must not import outrider.cli"),
        # The wire.
        ("coordinator/a.py", "from outrider.v1 import draft_pb2", "stop at the wire"),
        ("coordinator/__main__.py", "from outrider.v1.draft_pb2 import DraftOpen", "stop at the wire"),
        ("draft_service/drafter.py", "from google.protobuf import struct_pb2", "stop at the wire"),
        ("outrider/core/estimate/a.py", "from outrider.v1 import draft_pb2", "must not import outrider.v1.draft_pb2"),
        # The environment.
        ("coordinator/a.py", "import os\nos.environ['X']", "environment"),
        ("coordinator/a.py", "import os as o\no.getenv('X')", "environment"),
        ("coordinator/a.py", "from os import environ\nenviron.get('X')", "environment"),
        ("outrider/telemetry/setup.py", "import os\nos.environ", "environment"),
        # What is never done.
        ("outrider/engine/a.py", "import pickle", "runs what it reads"),
        ("outrider/engine/a.py", "from pickle import loads", "runs what it reads"),
        ("outrider/engine/a.py", "import torch\ntorch.load('x')", "torch.load"),
        ("outrider/engine/a.py", "from torch import load as l\nl('x')", "torch.load"),
        ("outrider/engine/a.py", "f(trust_remote_code=True)", "never run"),
        ("outrider/engine/a.py", "f(trust_remote_code=flag)", "never run"),
        ("outrider/engine/a.py", "f(**{'trust_remote_code': True})", "never run"),
        ("coordinator/a.py", "import time\ntime.sleep(1)", "time.sleep waits"),
        ("coordinator/a.py", "from asyncio import sleep\nasync def f():\n    await sleep(1)", "asyncio.sleep waits"),
        ("coordinator/a.py", "import asyncio as a\nasync def f():\n    await a.sleep(0)", "asyncio.sleep waits"),
        ("coordinator/a.py", "def f(x):\n    assert x > 0", "checks no value"),
        ("outrider/rpc/a.py", "def f(x):\n    assert x", "checks no value"),
        ("outrider/rpc/a.py", "def f(x):\n    assert not x.ok", "checks no value"),
        ("outrider/core/verify/a.py", "class C:\n    def f(self):\n        assert self.slot is not None", "a type"),
        # Files.
        ("outrider/rpc/utils.py", "", "says nothing"),
        ("tests/helpers.py", "", "says nothing"),
        ("coordinator/common/a.py", "", "says nothing"),
        ("tests/a.py", "\n" * (FILE_LINES_MAX + 1), "401 lines"),
        ("coordinator/a.py", "\n" * (PRODUCT_LINES_MAX + 1), "351 lines"),
        ("bench/a.py", "def f(a, b, c, d, e, f, g, h, i, j, *, k): ...", "f has 11 parameters"),
        ("outrider/novelty/a.py", "", "belongs to no layer"),
        ("outrider/a.py", "", "belongs to no layer"),
    ],
)
def test_a_breach_is_found(path: str, source: str, message: str) -> None:
    found = [str(violation) for violation in check(PurePosixPath(path), source)]
    assert len(found) >= 1
    assert any(message in violation for violation in found), found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "outrider/core/estimate/a.py",
            "import math\nfrom outrider.core.protocol.tree import Node\nfrom .line import Line",
        ),
        ("outrider/core/schedule/a.py", "from outrider.core.verify import session\nfrom ..draft import session"),
        ("coordinator/a.py", "from outrider.core.schedule import queue\nfrom outrider.core import protocol"),
        ("outrider/engine/a.py", "import torch, threading, time\nfrom outrider.core import tree\ntime.monotonic()"),
        (
            "outrider/rpc/wire/a.py",
            "from outrider.v1 import draft_pb2\nfrom outrider.core import messages\nimport grpc",
        ),
        ("outrider/telemetry/a.py", "def f(environ):\n    return environ.get('OTEL_SDK_DISABLED')"),
        ("coordinator/config.py", "import os\nos.environ['X']"),
        ("coordinator/a.py", "class C:\n    def f(self, a, b, c, d, e, f, g, h, i, *, j): ..."),
        ("coordinator/a.py", "def f(x):\n    assert x is not None\n    assert not isinstance(x, int)"),
        ("outrider/core/verify/a.py", "def f(node):\n    assert node.parent is not None"),
        ("coordinator/servicer.py", "from outrider.v1 import generation_pb2"),
        ("coordinator/a.py", "from outrider.v1 import draft_pb2_grpc\nfrom outrider import PROTOCOL_VERSION"),
        ("coordinator/a.py", "from opentelemetry.trace import Span"),
        ("outrider/telemetry/a.py", "from opentelemetry.sdk.trace import TracerProvider"),
        ("draft_service/a.py", "import torch\nimport outrider.worker\nf(trust_remote_code=False)"),
        ("outrider/v1/common_pb2.py", "import pickle\n" * 500),
        ("tests/a.py", "import pickle, torch, time\ntime.sleep(1)" + "\n" * (FILE_LINES_MAX - 1)),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert check(PurePosixPath(path), source) == []
