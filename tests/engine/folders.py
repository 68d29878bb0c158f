"""Copies of the bundled model, to be spoiled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

BUNDLED = Path(__file__).parents[2] / "models" / "draft"


def copied(parent: Path, name: str = "model") -> Path:
    """A copy of the bundled draft model, the smaller one."""
    return Path(shutil.copytree(BUNDLED, parent / name))


def edit(path: Path, **changes: object) -> None:
    """Sets entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """What its weights are."""
    return load_file(folder / "model.safetensors")


def store(folder: Path, tensors: Mapping[str, Tensor], name: str = "model.safetensors") -> None:
    """Writes weights."""
    save_file(dict(tensors), folder / name, {"format": "pt"})
