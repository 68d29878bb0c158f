"""A model folder that a recipe writes: whole, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from outrider.core.protocol.errors import UnsupportedModelError

_COMPANIONS = ("*.json", "*.jinja", "*.model", "*.txt")
"""Files beside the weights: tokenizer, chat template, and configurations, which are the model's own."""

_OF_THE_MODEL = ("config.json", "generation_config.json")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes the new or empty folder `out` if the block ends well.

    Raises UnsupportedModelError if there is something in `out`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UnsupportedModelError(f"{out} is not an empty folder; choose a new one")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as unfinished:
        written = Path(unfinished, "model")
        yield written
        written.replace(out)


def save(model: PreTrainedModel, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Writes a model, or other weights of its kind, that every user may read."""
    model.save_pretrained(folder, state_dict=None if weights is None else dict(weights))
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors makes them their owner's alone; a service often runs as somebody else


def copy_companions(folder: Path, out: Path) -> None:
    """Copies what stands beside a model's weights, but for what describes the model itself."""
    for file in (file for pattern in _COMPANIONS for file in folder.glob(pattern)):
        if file.name not in _OF_THE_MODEL and not file.name.endswith(".index.json"):
            shutil.copyfile(file, out / file.name)
