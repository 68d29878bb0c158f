"""What a doctor finds on machines and in installations that are made up for it."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from outrider.core.coordinate.server_info import Replica, ServerInfo
from outrider.core.protocol.messages import ModelInfo
from outrider.doctor import devices as devices_module
from outrider.doctor.devices import look_at_devices
from outrider.doctor.finding import Finding, Level
from outrider.doctor.machine import look_at_machine
from outrider.doctor.packages import look_at_packages
from outrider.doctor.server import look_at_server

TARGET = ModelInfo("big", "llama", 100, "a", (0,), 2048, 64, 12_000_000, "bfloat16", "cpu", 2, "i", "x", 0, 2**21, True)


def machine(root: Path, *, flags: str, megabytes: int = 8192) -> dict[str, Finding]:
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(f"processor : 0\nflags\t\t: fpu {flags} sse\n")
    (root / "proc" / "meminfo").write_text(f"MemTotal: {16384 * 1024} kB\nMemAvailable: {megabytes * 1024} kB\n")
    return {finding.subject: finding for finding in look_at_machine(root)}


def test_a_processor_is_known_by_its_instructions(tmp_path: Path) -> None:
    found = machine(tmp_path, flags="avx2 avx512f avx512_bf16")
    assert found["processor"] == Finding(Level.GOOD, "processor", "avx512f, avx512_bf16")
    assert "--dtype bfloat16" in found["bfloat16"].text
    assert found["memory"] == Finding(Level.GOOD, "memory", "8.0 GiB free of 16.0")


@pytest.mark.parametrize(("state", "level"), [(0, Level.GOOD), (5, Level.NOTE)])
def test_a_clock_that_nobody_keeps_right_is_noted(
    state: int, level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the kernel says of it, which only the machine's owner may change."""
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(adjtimex=lambda _: state))
    assert machine(tmp_path, flags="avx2")["clock"].level is level


def test_an_old_processor_and_little_memory_are_noted(tmp_path: Path) -> None:
    found = machine(tmp_path, flags="avx", megabytes=1024)
    assert found["processor"].level is Level.NOTE
    assert "bfloat16" not in found
    assert found["memory"].level is Level.NOTE
    assert "--kv-memory" in found["memory"].advice


@pytest.mark.parametrize(
    ("modes", "level"), [("always [madvise] never", Level.GOOD), ("always madvise [never]", Level.NOTE)]
)
def test_a_system_without_huge_pages_is_noted(tmp_path: Path, modes: str, level: Level) -> None:
    folder = tmp_path / "sys/kernel/mm/transparent_hugepage"
    folder.mkdir(parents=True)
    (folder / "enabled").write_text(f"{modes}\n")
    assert machine(tmp_path, flags="avx2")["huge pages"].level is level


def packages(installed: dict[str, str]) -> dict[str, Finding]:
    def version(name: str) -> str:
        try:
            return installed[name]
        except KeyError:
            raise PackageNotFoundError(name) from None

    wanted = ["grpcio>=1.81", "jinja2>=3.1.6", "torch>=2.13; extra == 'engine'", "pytest; extra == 'dev'"]
    return {finding.subject: finding for finding in look_at_packages(wanted, version)}


def test_packages_that_fit_are_good() -> None:
    found = packages({"grpcio": "1.85.1", "jinja2": "3.1.6", "torch": "2.13.0+cpu"})
    assert found.keys() == {"python", "packages", "extra engine"}
    assert all(finding.level is Level.GOOD for finding in found.values())


def test_an_old_package_is_a_problem_and_a_missing_extra_a_note() -> None:
    found = packages({"grpcio": "1.60", "jinja2": "3.1.6"})
    assert found["packages"].level is Level.PROBLEM
    assert "grpcio is 1.60, not >=1.81" in found["packages"].text
    assert found["extra engine"].level is Level.NOTE
    assert "torch is missing" in found["extra engine"].text
    assert found["extra engine"].advice == "pip install --upgrade 'outrider[engine]'"


def devices(code: str) -> list[Finding]:
    return list(look_at_devices((sys.executable, "-c", code)))


def test_devices_are_what_torch_tells() -> None:
    told = '{"torch": "2.13", "cuda": "13.0", "devices": [{"name": "T4", "memory": 17179869184, "bfloat16": false}]}'
    torch, card = devices(f"print('''{told}''')")
    assert torch == Finding(Level.GOOD, "torch", "2.13, built for CUDA 13.0")
    assert card == Finding(Level.NOTE, "cuda:0", "T4, 16 GiB; has no bfloat16", "pass --dtype float16 for its service")


MADE_UP = """
import sys, types, torch
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_properties = lambda number: types.SimpleNamespace(name="H200", total_memory=2**37, major=9)
torch.cuda.is_available = lambda: False
"""
"""Before torch is asked for its devices: it finds one that cannot be used."""


def test_a_gpu_that_cannot_run_kernels_is_noted() -> None:
    """By what a worker on it would say."""
    command = (sys.executable, "-P", "-c", MADE_UP + devices_module._ASK, str(devices_module._ROOT))
    _, card, kernels = look_at_devices(command)
    assert card == Finding(Level.GOOD, "cuda:0", "H200, 128 GiB")
    assert (kernels.level, kernels.subject) == (Level.NOTE, "kernels")
    assert "workers on cuda:0 run without: kernels in Triton need a CUDA device" in kernels.text


def test_what_kernels_lack_comes_with_what_to_do() -> None:
    card = {"name": "A", "memory": 1, "bfloat16": True, "no_kernels": "there is no C compiler; install gcc"}
    *_, kernels = devices(f"print({json.dumps({'torch': '2.13', 'cuda': '13.0', 'devices': [card]})!r})")
    assert kernels.text.endswith("run without: there is no C compiler")
    assert kernels.advice == "install gcc"
    card = {"name": "A", "memory": 1, "bfloat16": True, "no_launchers": "there is no C compiler; install gcc"}
    *_, launchers = devices(f"print({json.dumps({'torch': '2.13', 'cuda': '13.0', 'devices': [card]})!r})")
    assert launchers.text.endswith("launch them by libcuda, and compile nothing else: there is no C compiler")
    assert launchers.advice == "install gcc"


def test_a_torch_that_fails_is_a_problem_and_a_missing_one_is_none() -> None:
    (broken,) = devices("raise ImportError('libcudart.so.13 is not there')")
    assert broken.level is Level.PROBLEM
    assert "libcudart.so.13" in broken.text
    assert not devices(
        "import sys; sys.modules['torch'] = None; raise ModuleNotFoundError(\"No module named 'torch'\")"
    )


@pytest.mark.parametrize(
    ("replica", "level", "words"),
    [
        (Replica("a:1", "outrider.v1.VerifyService", True, "", TARGET, None, 0), Level.GOOD, "big, 12 M parameters"),
        (Replica("a:1", "outrider.v1.DraftService", False, "refused", None, None, 0), Level.PROBLEM, "a:1: refused"),
        (Replica("a:1", "outrider.v1.DraftService", False, "", None, None, 0), Level.PROBLEM, "has never answered"),
    ],
)
def test_a_worker_is_good_or_has_a_problem(replica: Replica, level: Level, words: str) -> None:
    versions, worker = look_at_server(ServerInfo("1.0", 2, TARGET, None, "", 0, (replica,)), "1.0")
    assert versions.level is Level.GOOD
    assert worker.level is level
    assert words in worker.text


def test_a_worker_on_a_device_that_nobody_has_tried_is_noted() -> None:
    target = TARGET._replace(device="cuda:0", unproven="no GPU has run this release")
    verifier = Replica("a:1", "outrider.v1.VerifyService", True, "", target, None, 0)
    _, worker, note = look_at_server(ServerInfo("1.0", 2, target, None, "", 0, (verifier,)), "1.0")
    assert (worker.level, note.level) == (Level.GOOD, Level.NOTE)
    assert note.text == "on cuda:0: no GPU has run this release"


def test_a_verifier_that_drafts_for_itself_says_with_what() -> None:
    target = TARGET._replace(draft_model="small")
    verifier = Replica("a:1", "outrider.v1.VerifyService", True, "", target, None, 0)
    _, worker = look_at_server(ServerInfo("1.0", 2, target, None, "", 0, (verifier,)), "1.0")
    assert worker.level is Level.GOOD
    assert worker.text.endswith("drafts for itself with small")


def test_what_hinders_a_server_is_named() -> None:
    verifier = Replica("a:1", "outrider.v1.VerifyService", True, "", TARGET._replace(batch_invariant=False), None, 0)
    found = list(look_at_server(ServerInfo("1.0", 2, TARGET, None, "no drafter", 0, (verifier,)), "1.1"))
    by_subject = {finding.subject: finding for finding in found}
    assert by_subject["versions"].level is Level.NOTE
    assert by_subject["exactness"].level is Level.NOTE
    assert by_subject["pair"] == Finding(
        Level.PROBLEM, "pair", "no drafter", "requests run by the target alone until then"
    )
