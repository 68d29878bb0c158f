"""A compilation that fails, that must not fail, and that nobody waits for any more."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from structlog.testing import capture_logs
from torch._inductor import config as inductor

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine import native
from outrider.engine.compile.just_in_time import compiler_problem
from outrider.engine.engine import Engine
from outrider.engine.jobs import Job
from outrider.engine.library import CannotCompileError
from outrider.engine.load import self_check
from outrider.engine.load.probe import probe_layers
from outrider.machine.workspace import workspace
from outrider.worker import compilation, forward_pass, serving
from outrider.worker.compilation import cache_problem
from outrider.worker.config import WorkerConfig
from tests.e2e.stack import load_tiny, save_tiny
from tests.engine.tiny_models import build

CPU_PROBLEM = compiler_problem(torch.device("cpu"))


def config(**settings: object) -> WorkerConfig:
    return WorkerConfig.model_validate({"model": "m", "listen": ""} | settings)


def compiler(path: Path, commands: str) -> str:
    """A program that passes for a compiler when it is asked for its version, and then does as told."""
    path.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then exit 0; fi\n{commands}\n')
    path.chmod(0o755)
    return str(path)


def test_a_cache_is_made_and_must_be_written_and_run_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_problem(tmp_path / "new" / "cache") == ""
    assert list((tmp_path / "new" / "cache").iterdir()) == []
    file = tmp_path / "file"
    file.touch()
    assert "cannot be written (Not a directory); choose another" in cache_problem(file / "cache")
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC))
    assert "mounted noexec; choose another folder with --compile-cache" in cache_problem(tmp_path)


@pytest.mark.skipif(CPU_PROBLEM != "", reason=CPU_PROBLEM)
@pytest.mark.parametrize("choice", ["auto", "first"])
def test_where_nothing_can_be_compiled_a_worker_serves_and_says_why(choice: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = save_tiny(build("llama", layers=1), tmp_path / "model")
    with capture_logs() as logs:
        loaded = load_tiny(folder, compile=choice, compile_cache=tmp_path / "file" / "cache")
    assert loaded.package is None
    assert next(log["reason"] for log in logs if log["log_level"] == "warning").startswith("the compile cache")
    with pytest.raises(UnsupportedModelError, match=r"^--compile on: the compile cache .*; or use --compile off$"):
        load_tiny(folder, compile="on", compile_cache=tmp_path / "file" / "cache")


def test_a_package_of_no_use_is_made_anew_and_the_model_runs_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_loaded", False)
    model = build("llama", layers=1)
    reference = self_check.reference(model, probe_layers(model), 64)
    engine = Engine(model, max_sessions=1, max_context=64)
    package = tmp_path / "m.pt2"
    assert not forward_pass._adopted(engine, package, reference)
    package.write_bytes(b"cut off")
    with capture_logs() as logs, inductor.patch({"cpp.cxx": (None, str(tmp_path / "no compiler"))}):
        assert not forward_pass._adopted(engine, package, reference)
    assert [(log["event"], log["package"]) for log in logs] == [("the compiled package is of no use", "m.pt2")]
    self_check.check(engine, reference)
    assert engine.step([Job(engine.acquire(), [3, 1, 4])]).logits.isfinite().all()


async def test_a_failed_compilation_is_a_warning_or_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path / "c++", "echo 'No space left on device' >&2; exit 1"))
    folder = save_tiny(build("llama", layers=1), tmp_path / "model")
    package = tmp_path / "cache" / "m.pt2"
    package.parent.mkdir()
    loaded = load_tiny(folder, compile="off")
    with capture_logs() as logs:
        await serving._compile_first(config(compile="first", num_threads=1), loaded, package)
    warnings = [log for log in logs if log["log_level"] == "warning"]
    assert [log["event"] for log in warnings] == ["not compiled"]
    assert "No space left on device" in warnings[0]["reason"]
    assert list(package.parent.iterdir()) == []

    async def failing(*_: object, **__: object) -> None:
        raise CannotCompileError(warnings[0]["reason"])

    monkeypatch.setattr(serving, "compile_package", failing)
    with pytest.raises(CannotCompileError, match="No space left on device"):
        await serving._compile_first(config(compile="on", num_threads=1), loaded, package)


async def test_a_cache_that_is_lost_before_it_is_written_is_said(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.touch()
    with pytest.raises(CannotCompileError, match=r"into .*cache \(File exists\); use --compile-cache"):
        await compilation.compile_package(cache / "m.pt2", tmp_path, "float32", "full", background=True)


async def test_a_compilation_that_is_killed_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system does where memory runs out; what it had written by then is not the reason."""

    def killed(*_: object) -> subprocess.Popen[str]:
        command = ["sh", "-c", "echo 'a warning' >&2; kill -KILL $$"]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    monkeypatch.setattr(compilation, "_started", killed)
    with pytest.raises(CannotCompileError, match="was killed, as systems do that run out of memory"):
        await compilation.compile_package(tmp_path / "m.pt2", tmp_path, "float32", "full", background=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("", ""),
        ("Traceback:\n  here\nRuntimeError: why\nframe #0: f\nframe #1: _start + 0x21", "RuntimeError: why"),
        ("terminate called\n  what():  why\nException raised from valid at a.cc:1\nframe #0: f", "why"),
    ],
)
def test_last_words_are_not_a_stack(written: str, words: str) -> None:
    command = [sys.executable, "-c", f"import sys; sys.stderr.write({written!r})"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert compilation._last_words(process) == words


@pytest.mark.skipif(CPU_PROBLEM != "" or not hasattr(os, "pidfd_open"), reason=CPU_PROBLEM or "cannot wait for others")
async def test_a_worker_that_is_stopped_while_it_compiles_ends_with_its_compiler_and_leaves_nothing_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, cache = tmp_path / "started", tmp_path / "cache"
    os.mkfifo(started)
    folder = save_tiny(build("llama", layers=1), tmp_path / "model")
    monkeypatch.setenv("CXX", compiler(tmp_path / "c++", f"echo $$ > {started}; exec sleep 600"))
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "verify_service", f"--model={folder}", "--listen=127.0.0.1:0", "--num-threads=1"),
        *("--compile=on", f"--compile-cache={cache}"),
        stderr=asyncio.subprocess.PIPE,
    )
    first, *_ = (await asyncio.to_thread(started.read_text)).split()  # of two sources at a time
    compiling = os.pidfd_open(int(first))
    try:
        worker.terminate()
        _, errors = await worker.communicate()
        assert worker.returncode == 0
        assert b"stopped before it was ready" in errors
        assert await asyncio.to_thread(select.select, [compiling], [], [])
        with workspace(cache):
            pass  # as the next compilation does
        assert [path.name for path in cache.iterdir() if not path.name.startswith("lookup-")] == []  # built before
    finally:
        os.close(compiling)
