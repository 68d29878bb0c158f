"""Which model a folder holds: what it is called, and what it computes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

_NOT_COMPUTED = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"})
"""Entries of config.json that change no logit, or are told beside the identity."""


def model_name(folder: Path) -> str:
    """The folder's name; of a snapshot in the hub's cache, the repository's name, such as "org/name"."""
    folder = Path(os.path.abspath(folder))  # "." has no name
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return folder.name


def model_sha256(folder: Path, weights_sha256: str, tokenizer: bytes) -> str:
    """SHA-256 of what decides a model's tokens: weights, configuration and tokenizer, whatever its name and files."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    computed = {name: value for name, value in config.items() if name not in _NOT_COMPUTED}
    parts = [weights_sha256, computed, hashlib.sha256(tokenizer).hexdigest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
