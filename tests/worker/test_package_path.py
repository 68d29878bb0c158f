"""A compiled package belongs to the content of the weights that are frozen into it."""

from __future__ import annotations

import os
from pathlib import Path

from outrider.engine.load.checkpoint import weights_sha256
from outrider.worker.compilation import package_path
from tests.engine.folders import copied, store, tensors_of


def test_another_fine_tune_of_equal_size_and_times_has_another_package(tmp_path: Path) -> None:
    folders = [copied(tmp_path, name) for name in ("first", "again", "other")]
    tensors = tensors_of(folders[2])
    store(folders[2], {name: tensor * 1.03 for name, tensor in tensors.items()})
    for folder in folders:
        os.utime(folder / "model.safetensors", (1, 1))
    first, again, other = (
        package_path(tmp_path, folder, weights_sha256(folder), "bfloat16").name.rpartition("-")[2] for folder in folders
    )
    assert first == again != other


def test_weights_that_are_kept_otherwise_have_another_package(tmp_path: Path) -> None:
    folder = copied(tmp_path, "model")
    names = {
        package_path(tmp_path, folder, weights_sha256(folder), "bfloat16", weights).name.rpartition("-")[2]
        for weights in ("full", "int8")
    }
    assert len(names) == 2
