"""The weights of a model folder as they lie on disk: checked without reading them, and their digest."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from outrider.core.protocol.errors import UnsupportedModelError

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
LFS_POINTER = b"version https://git-lfs"
"""How a file begins that stands for another one, which git lfs has not fetched."""
_HEADER_BYTES_MAX = 100_000_000
"""Longest header that safetensors itself accepts."""
_DIGEST_THREADS = 8
"""Tensors that are digested at a time: one core makes one or two gigabytes a second, a disk more."""

_NAMES_MAX = 4
"""Most names in one sentence."""


class StoredTensor(NamedTuple):
    """One tensor and where its bytes are."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int


def read_checkpoint(folder: Path) -> Sequence[StoredTensor]:
    """What the folder's safetensors files hold, by their headers alone.

    Raises UnsupportedModelError if a file is missing, is no safetensors file, or is shorter than its header says.
    """
    if os.path.lexists(folder / _WEIGHTS):
        return list(_read_header(folder / _WEIGHTS))
    if not (folder / _INDEX).is_file():
        if (folder / "adapter_config.json").is_file():
            raise UnsupportedModelError(
                f"{folder} holds an adapter alone; merge it into its base model and pass the folder of the whole"
            )
        raise UnsupportedModelError(f"{folder} has neither {_WEIGHTS} nor {_INDEX}; write it with save_pretrained")
    files = _shards(folder)
    if missing := sorted(name for name in set(files.values()) if not (folder / name).is_file()):
        raise UnsupportedModelError(f"{folder} lacks {named(missing)}, which {_INDEX} names; download it again")
    tensors = [tensor for name in sorted(set(files.values())) for tensor in _read_header(folder / name)]
    if missing := sorted(set(files) - {tensor.name for tensor in tensors}):
        raise UnsupportedModelError(f"{folder} lacks the tensors {named(missing)}, which {_INDEX} names")
    return tensors


def weights_sha256(folder: Path) -> str:
    """SHA-256 of all tensors, their names, types and shapes, however they are spread over files.

    Reads all weights once. Raises UnsupportedModelError as `read_checkpoint` does.
    """
    tensors = sorted(read_checkpoint(folder))
    with ThreadPoolExecutor(_DIGEST_THREADS) as pool:
        digests = list(pool.map(_tensor_sha256, tensors))
    content = [
        (tensor.name, tensor.dtype, tensor.shape, digest) for tensor, digest in zip(tensors, digests, strict=True)
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _tensor_sha256(tensor: StoredTensor) -> str:
    if tensor.begin == tensor.end:
        return hashlib.sha256().hexdigest()
    start = tensor.begin - tensor.begin % mmap.ALLOCATIONGRANULARITY
    with (
        tensor.file.open("rb") as file,
        mmap.mmap(file.fileno(), tensor.end - start, access=mmap.ACCESS_READ, offset=start) as mapped,
        memoryview(mapped) as view,
        view[tensor.begin - start :] as content,
    ):
        return hashlib.sha256(content).hexdigest()


def _shards(folder: Path) -> dict[str, str]:
    """The file of each tensor, by the index. Files are in the folder itself."""
    try:
        files: dict[str, str] = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(name, str) and Path(name).name == name for name in files.values()):
            raise ValueError("it names files outside of the folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnsupportedModelError(f"{folder / _INDEX} cannot be read: {error}; download it again") from error
    return files


def _read_header(path: Path) -> Iterator[StoredTensor]:
    try:
        yield from _header(path)
    except OSError as error:
        raise UnsupportedModelError(
            f"{path} cannot be read ({error.strerror}); download it again, or let this user read it"
        ) from error


def _header(path: Path) -> Iterator[StoredTensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if (start + file.read(len(LFS_POINTER) - len(start))) == LFS_POINTER:
            raise UnsupportedModelError(f"{path} is a Git LFS pointer, not the weights; fetch them with git lfs pull")
        file.seek(len(start))
        num_header_bytes = int.from_bytes(start, "little")
        if size < 8 or not 2 <= num_header_bytes <= min(size - 8, _HEADER_BYTES_MAX):
            raise UnsupportedModelError(f"{path} ({size} bytes) is cut off or no safetensors file; download it again")
        try:
            header: dict[str, Any] = json.loads(file.read(num_header_bytes))
            header.pop("__metadata__", None)
            base = 8 + num_header_bytes
            tensors = [
                StoredTensor(
                    name, entry["dtype"], tuple(entry["shape"]), path, *(base + at for at in entry["data_offsets"])
                )
                for name, entry in header.items()
            ]
            if not all(
                isinstance(each.dtype, str) and all(type(size) is int for size in each.shape) for each in tensors
            ):
                raise ValueError("types and shapes")
            end = max((tensor.end for tensor in tensors), default=base)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UnsupportedModelError(f"{path} has no header that can be read; download it again") from error
    if end != size:
        raise UnsupportedModelError(f"{path} has {size} bytes where its header says {end}; download it again")
    yield from tensors


def named(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:_NAMES_MAX])
    return f"{shown} and {len(names) - _NAMES_MAX} more" if len(names) > _NAMES_MAX else shown
