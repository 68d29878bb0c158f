"""What has to be settled before workers load the models."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from bench.stack.models import Models
from outrider.cli.door import check
from outrider.cli.up_options import NoModelError, UpOptions, choose_models
from outrider.core.protocol.errors import OutriderError
from outrider.engine.compile.just_in_time import compiler_problem

WIDE_MLP = 16384
"""MLP width that gives the bundled target ten times its parameters, so that a draft step costs little beside it."""


class WideningError(OutriderError):
    """The widened target could not be made."""


def prepared(models: Models, console: Console) -> Models:
    """The models with the bundled ones named, the target widened if it shall be, and compilation on or off.

    `--compile auto` would serve at once and compile while answers are measured: compile first, or not at all. Raises
    NoModelError, WideningError, and typer.BadParameter for what the workers would refuse.
    """
    chosen = choose_models(models.target or None, models.draft or None, models.ngram_table, no_draft=False)
    if chosen.draft is None:
        raise NoModelError("name the draft model of this target with --draft MODEL")
    check(
        UpOptions(
            **chosen._asdict(),
            target_device=models.target_device,
            draft_device=models.draft_device,
            dtype=models.dtype,
            compiled=models.compile,
        )
    )
    target = str(widened(Path(chosen.target), WIDE_MLP, console)) if models.wide else chosen.target
    compile = models.compile
    if compile == "auto":
        devices = (models.target_device, models.draft_device)
        compile = "off" if any(compiler_problem(torch.device(device)) for device in devices) else "on"
    return replace(models, target=target, draft=chosen.draft, ngram_table=chosen.ngram_table, compile=compile)


def widened(target: Path, mlp_width: int, console: Console) -> Path:
    """The target with MLPs of that width, which computes the same function; made once and kept.

    Raises WideningError.
    """
    folder = kept(target, f"mlp{mlp_width}")
    if (folder / "config.json").is_file():
        return folder
    console.print(f"widening {target.name} to an MLP of {mlp_width}: {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "recipes.widen", str(target), str(folder), f"--mlp-width={mlp_width}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WideningError(f"{target} could not be widened:\n{done.stderr.strip()}")
    return folder


def kept(model: Path, made: str) -> Path:
    """Where something that is made of the weights in the folder `model` is kept from run to run."""
    digest = hashlib.sha256()
    for file in sorted(model.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return Path.home() / ".cache" / "outrider" / "bench" / f"{model.name}-{digest.hexdigest()[:12]}-{made}"
