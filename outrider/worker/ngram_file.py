"""The file of a static n-gram table: safetensors, which cannot run code, checked before it is used.

For each order n the tensors `contexts.n` int64 [C], `token_ids.n` int32 [C x width] and `shares.n` uint8 [C x width],
laid out as `StaticOrder` says; the metadata name the format, the width and the tokenizer whose ids they are.
`python -m recipes.ngram_table` writes such files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from outrider.core.propose.ngram_static import STATIC_ORDERS, VOCAB_SIZE_MAX, StaticNgrams, StaticOrder
from outrider.core.protocol.errors import UnsupportedModelError
from outrider.core.protocol.messages import ModelInfo
from outrider.worker.extras import NGRAM_TABLE, lacking

FORMAT = "outrider-ngrams-1"
"""Names this layout; another one gets another number."""


class NgramFile(NamedTuple):
    """What a file holds."""

    table: StaticNgrams
    vocab_size: int
    """Every token id is below it."""
    tokenizer_sha256: str
    """The vocabulary whose ids they are, as `ModelInfo.tokenizer_sha256` has it."""


def load_ngrams(path: str | Path) -> NgramFile:
    """Reads and checks a file. Raises UnsupportedModelError with what to do instead."""
    try:
        # A worker without a table needs neither this package nor numpy, which it needs in turn.
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise UnsupportedModelError(f"--ngram-table {lacking(NGRAM_TABLE, 'ngram-table')}, or leave it out") from error
    try:
        with safe_open(path, framework="np") as file:
            metadata: dict[str, str] = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format', 'not named')}, not {FORMAT}")
            width, vocab_size = int(metadata.get("width", "")), int(metadata.get("vocab_size", ""))
            if not 1 <= vocab_size <= VOCAB_SIZE_MAX:
                raise ValueError(f"its vocabulary of {vocab_size} is not between 1 and {VOCAB_SIZE_MAX}")
            names = set(file.keys())
            orders = {
                num_tokens: StaticOrder(
                    contexts=_values(file.get_tensor(f"contexts.{num_tokens}"), "int64"),
                    token_ids=_values(file.get_tensor(f"token_ids.{num_tokens}"), "int32"),
                    shares=_values(file.get_tensor(f"shares.{num_tokens}"), "uint8"),
                )
                for num_tokens in STATIC_ORDERS
                if f"contexts.{num_tokens}" in names
            }
        table = StaticNgrams(orders, width=width, vocab_size=vocab_size)
    except (SafetensorError, OSError, ValueError) as error:
        raise UnsupportedModelError(
            f"{path} is no usable n-gram table: {error}; write one with python -m recipes.ngram_table"
        ) from error
    return NgramFile(table, vocab_size, metadata.get("tokenizer_sha256", ""))


def load_ngrams_of(info: ModelInfo, path: str) -> StaticNgrams | None:
    """The table of the file at `path`, if one is named, for a target.

    Raises UnsupportedModelError if the file cannot be used with the model.
    """
    if not path:
        return None
    file = load_ngrams(path)
    if file.tokenizer_sha256 != info.tokenizer_sha256:
        raise UnsupportedModelError(
            f"{path} was counted with another vocabulary than that of {info.name!r}; count it "
            "with python -m recipes.ngram_table --tokenizer and the model's tokenizer.json"
        )
    if file.vocab_size > info.vocab_size:
        raise UnsupportedModelError(
            f"{path} was counted with {file.vocab_size} token ids, of which {info.name!r} knows {info.vocab_size}; "
            "leave --ngram-table out"
        )
    return file.table


def _values(tensor: Any, dtype: str) -> Sequence[int]:
    """The one-dimensional array's own memory: its elements come out as plain integers, without a copy of all."""
    if str(tensor.dtype) != dtype or tensor.ndim != 1:
        raise ValueError(f"a tensor is {tensor.dtype} {list(tensor.shape)} where one axis of {dtype} belongs")
    return memoryview(tensor)
