"""The mask token of a parallel draft model, as its config.json names it."""

from __future__ import annotations

import json
from pathlib import Path

from outrider.core.protocol.errors import UnsupportedModelError

_NAMES = ("pard_token", "ptd_token_id", "mask_token_id")
"""Entries of config.json that name it: PARD's (arXiv 2504.18583), that of parallel token decoding, and the general
one."""


def mask_token_id(folder: Path, vocab_size: int) -> int | None:
    """The id of the token that stands for one that is not known yet; None if the checkpoint has none.

    `vocab_size` is the model's. Raises UnsupportedModelError for an id that the model has no embedding of.
    """
    config = json.loads((folder / "config.json").read_bytes())
    for name in _NAMES:
        token_id = config.get(name)
        if token_id is None:
            continue
        if type(token_id) is not int or not 0 <= token_id < vocab_size:
            raise UnsupportedModelError(
                f"{name} is {token_id!r} in {folder / 'config.json'}; it must be a token id below the vocabulary's "
                f"size of {vocab_size}, or be left out; or draft level by level with --parallel off"
            )
        return token_id
    return None
