"""Whether a draft model can draft for a target, by what their folders say before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.vocabulary import vocabulary_sha256

TOKENIZER_BYTES_MAX = 1 << 28
"""Longest tokenizer.json that is read: large ones have tens of megabytes."""


class MisfitError(OutriderError):
    """Two models that cannot serve one line together."""


def check_fit(target: str, draft: str) -> None:
    """Raises MisfitError if the models in two folders give token ids another meaning; what is no folder with a
    tokenizer.json is not looked at."""
    files = [Path(model) / "tokenizer.json" for model in (target, draft)]
    if not all(file.is_file() for file in files):
        return
    of_target, of_draft = map(_vocabulary, files)
    if of_target != of_draft:
        raise MisfitError(
            f"{draft} gives token ids another meaning than {target}: take a draft of the target's family, train one "
            "(outrider distill), or write this one in the target's vocabulary (from a checkout: python -m "
            "recipes.transplant)"
        )


def _vocabulary(file: Path) -> str:
    try:
        if file.stat().st_size > TOKENIZER_BYTES_MAX:
            raise ValueError(f"it has more than {TOKENIZER_BYTES_MAX} bytes")
        return vocabulary_sha256(file.read_bytes())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MisfitError(f"{file} is no tokenizer ({error}); copy it again") from error
