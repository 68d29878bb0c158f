"""The compile cache: where a model's ahead-of-time package is on disk, and how it comes to be there.

`python -m outrider.worker.compilation MODEL DTYPE NUM_THREADS PACKAGE` compiles one, in a process of its own: that
takes memory and a minute or more of processor time, and leaves neither behind.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import structlog
import torch
import transformers

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine import library, native
from outrider.engine.compile import ahead, export, invariance, linear
from outrider.engine.engine import Engine
from outrider.engine.load import self_check
from outrider.engine.load.folder import load_model
from outrider.engine.load.identity import model_name

_log = structlog.get_logger()

NICENESS = 10
"""How far a compilation stands back from what serves meanwhile."""


def package_path(cache: Path, folder: Path, weights_sha256: str, dtype: str, num_threads: int) -> Path:
    """Where the package belongs that is compiled from the model in `folder` by this software on this processor.

    The weights, which are frozen into it, count by their content.
    """
    digest = hashlib.sha256()
    for part in (
        weights_sha256,
        torch.__version__,
        transformers.__version__,
        dtype,
        str(num_threads),
        library.processor(),
    ):
        digest.update(part.encode() + b"\0")
    modules = (ahead.__file__, export.__file__, invariance.__file__, linear.__file__)
    for source in (*library.SOURCES, *map(Path, modules), folder / "config.json"):
        digest.update(source.read_bytes())
    return cache / f"{model_name(folder).replace('/', '--')}-{dtype}-{digest.hexdigest()[:16]}.pt2"


async def compile_package(package: Path, folder: Path, dtype: str, num_threads: int, *, background: bool) -> None:
    """Compiles `package` in a process of its own, which dies with this one's task.

    Raises UnsupportedModelError with that process's last words.
    """
    started = time.monotonic()
    _log.info("compiling the forward pass, once for this model and machine", package=package.name)
    nice = ["nice", "-n", str(NICENESS)] if background else []
    command = [sys.executable, "-m", "outrider.worker.compilation", str(folder), dtype, str(num_threads), str(package)]
    process = await asyncio.to_thread(_started, [*nice, *command])
    try:
        _, stderr = await asyncio.to_thread(process.communicate)
    finally:
        if process.poll() is None:
            process.kill()
    if process.returncode:
        words = stderr.strip().splitlines()
        raise UnsupportedModelError(words[-1] if words else f"the compilation ended with status {process.returncode}")
    _log.info("compiled", package=package.name, seconds=round(time.monotonic() - started, 1))


def _started(command: list[str]) -> subprocess.Popen[str]:
    """Not by the event loop: uvloop forks, and a fork runs gRPC's handlers, which may crash the child."""
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, errors="replace")


def _compile(folder: Path, dtype: str, num_threads: int, package: Path) -> None:
    torch.set_num_threads(num_threads)
    transformers.logging.disable_progress_bar()
    native.load(package.parent)
    cpu = torch.device("cpu")
    model = load_model(folder, device=cpu, dtype=dtype)
    reference = self_check.reference_logits(model)
    handle, unfinished = tempfile.mkstemp(dir=package.parent, suffix=".unfinished.pt2")
    os.close(handle)
    try:
        ahead.compile_ahead(model, Path(unfinished))
        engine = Engine(model, max_sessions=1, max_context=64)
        engine.adopt(Path(unfinished))
        self_check.check(engine, reference)
        Path(unfinished).replace(package)
    finally:
        Path(unfinished).unlink(missing_ok=True)


if __name__ == "__main__":
    _, folder_, dtype_, num_threads_, package_ = sys.argv
    try:
        _compile(Path(folder_), dtype_, int(num_threads_), Path(package_))
    except UnsupportedModelError as error_:
        sys.exit(str(error_))
