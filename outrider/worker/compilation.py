"""The compile cache: where a model's ahead-of-time package is on disk, and how it comes to be there.

`python -m outrider.worker.compilation MODEL DTYPE WEIGHTS PACKAGE NICENESS` compiles one, in a process of its own:
that takes memory and a minute or more of processor time, and leaves neither behind. TMPDIR must be on the disk of
PACKAGE.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import structlog
import torch
import transformers
from torch._inductor import config as inductor

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine import library, native
from outrider.engine.compile import ahead, export, invariance, linear, wanted_rows
from outrider.engine.engine import Engine
from outrider.engine.library import CannotCompileError
from outrider.engine.load import self_check
from outrider.engine.load.folder import load_model
from outrider.engine.load.identity import model_name
from outrider.engine.load.probe import probe_layers
from outrider.engine.quantized import eight_bits
from outrider.engine.quantized.linear import keep_in_eight_bits
from outrider.machine.limits import num_cores
from outrider.machine.tether import tethered
from outrider.machine.workspace import runs_nothing, workspace

_log = structlog.get_logger()

NICENESS = 10
"""How far a compilation stands back from what serves meanwhile."""

_STACK = ("frame #", "Exception raised from ")
"""What lines of a stack begin with that torch's C++ writes behind its last words."""

END_GRACE_S = 1.0
"""Time from SIGTERM to SIGKILL for a compilation that nobody waits for any more."""


def package_path(cache: Path, folder: Path, weights_sha256: str, dtype: str, weights: str = "full") -> Path:
    """Where the package belongs that is compiled from the model in `folder` by this software on this processor.

    The weights, which are frozen into it, count by their content, and by what linear layers keep them in.
    """
    digest = hashlib.sha256()
    for part in (
        weights_sha256,
        torch.__version__,
        transformers.__version__,
        dtype,
        weights,
        library.processor(),
    ):
        digest.update(part.encode() + b"\0")
    passes = (ahead.__file__, export.__file__, invariance.__file__, linear.__file__, wanted_rows.__file__)
    for source in (*library.SOURCES, *map(Path, (*passes, eight_bits.__file__)), folder / "config.json"):
        digest.update(source.read_bytes())
    kept = "" if weights == "full" else f"-{weights}"
    return cache / f"{model_name(folder).replace('/', '--')}-{dtype}{kept}-{digest.hexdigest()[:16]}.pt2"


def cache_problem(cache: Path) -> str:
    """Why nothing can be compiled into the folder `cache`, which is made, and run from it; empty if it can."""
    advice = "choose another folder with --compile-cache"
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=cache):
            pass
        is_noexec = runs_nothing(cache)
    except OSError as error:
        return f"the compile cache {cache} cannot be written ({error.strerror}); {advice}"
    if is_noexec:
        return f"nothing that lies in the compile cache {cache} can be run, since it is mounted noexec; {advice}"
    return ""


async def compile_package(package: Path, folder: Path, dtype: str, weights: str, *, background: bool) -> None:
    """Compiles `package` in a process of its own, which dies with this one's task, and with this process.

    `weights` is what `kept_as` says. Raises CannotCompileError with that process's last words, or because there is no
    room for the package.
    """
    started = time.monotonic()
    _log.info("compiling the forward pass, once for this model and machine", package=package.name)
    niceness = NICENESS if background else 0
    arguments = [str(folder), dtype, weights, str(package), str(niceness)]
    try:
        with workspace(package.parent) as temporary:
            process = await asyncio.to_thread(_started, arguments, temporary)
            try:
                words = await asyncio.to_thread(_last_words, process)
            except asyncio.CancelledError:
                await asyncio.to_thread(_end, process)
                raise
    except OSError as error:
        raise CannotCompileError(_cannot_be_kept(package, error)) from error
    if process.returncode == -signal.SIGKILL:
        raise CannotCompileError("the compilation was killed, as systems do that run out of memory (`dmesg` tells)")
    if process.returncode:
        raise CannotCompileError(words or f"the compilation ended with status {process.returncode}")
    _log.info("compiled", package=package.name, seconds=round(time.monotonic() - started, 1))


def _started(arguments: Sequence[str], temporary: Path) -> subprocess.Popen[str]:
    """Not by the event loop: uvloop forks, and a fork runs gRPC's handlers, which may crash the child."""
    return subprocess.Popen(
        ["env", f"TMPDIR={temporary}", *tethered("outrider.worker.compilation", *arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        errors="replace",
        start_new_session=True,
    )


def _cannot_be_kept(package: Path, error: OSError) -> str:
    return f"nothing can be compiled into {package.parent} ({error.strerror}); use --compile-cache"


def _end(process: subprocess.Popen[str]) -> None:
    """Ends the process and its compilers."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(END_GRACE_S)


def _last_words(process: subprocess.Popen[str]) -> str:
    """The last line that the process writes, at its end. Its standard input stays open until then."""
    assert process.stderr is not None
    with process:
        lines = process.stderr.read().strip().splitlines()
    told = [line.strip().removeprefix("what():").strip() for line in lines if not line.startswith(_STACK)]
    return (told or [""])[-1]


def _compile_once(folder: Path, dtype: str, weights: str, package: Path) -> None:
    """Workers of one model that start together compile it once: the others wait for the first, and find it compiled."""
    with (folder / "config.json").open() as model:
        with contextlib.suppress(OSError):  # there are file systems without locks: then each compiles for itself
            fcntl.flock(model, fcntl.LOCK_EX)
        if not package.exists():
            _compile(folder, dtype, weights, package)


def _compile(folder: Path, dtype: str, weights: str, package: Path) -> None:
    torch.set_num_threads(num_cores())  # both would take as many as the machine has
    inductor.compile_threads = num_cores()
    transformers.logging.disable_progress_bar()
    native.load(package.parent)
    cpu = torch.device("cpu")
    model = load_model(folder, device=cpu, dtype=dtype)
    if weights == "int8":
        keep_in_eight_bits(model)
    reference = self_check.reference(model, probe_layers(model), self_check.LINE_TOKENS_MAX)
    unfinished = Path(tempfile.gettempdir(), package.name)
    ahead.compile_ahead(model, unfinished)
    engine = Engine(model, max_sessions=1, max_context=self_check.LINE_TOKENS_MAX)
    engine.adopt(unfinished)
    self_check.check(engine, reference)
    unfinished.replace(package)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    _, folder_, dtype_, weights_, package_, niceness_ = sys.argv
    try:
        os.nice(int(niceness_))
        _compile_once(Path(folder_), dtype_, weights_, Path(package_))
    except UnsupportedModelError as error_:
        sys.exit(str(error_))
    except OSError as error_:
        sys.exit(_cannot_be_kept(Path(package_), error_))
