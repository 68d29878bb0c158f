"""From source files to windows of token ids."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

from recipes.demo_pair.recipe import RecipeError

END_OF_TEXT = "<|endoftext|>"
"""Stands in front of each document, with token id 0: begin, end and padding in one."""

SPLIT_PATTERN = r"\n *|\d|[^\s\w]+|\s?\w+|\s+"
"""No token crosses these borders: a line break with its indentation, one digit, punctuation, a word, other space."""

FOLDERS_LEFT_OUT = frozenset({"site-packages", "dist-packages", "encodings", "pydoc_data"})
"""Not the standard library, or not code: tables of character codes, the text of `help()`. Tests are code and stay."""


def read_documents(folder: Path) -> list[str]:
    """Every different Python file below `folder` that is UTF-8 and not empty, sorted by the SHA-256 of its content.

    That order is as good as a shuffle, yet the same wherever the files lie; the first ones can be held out.
    """
    documents: dict[str, str] = {}
    for path in folder.rglob("*.py"):
        if FOLDERS_LEFT_OUT.isdisjoint(path.relative_to(folder).parts):
            content = path.read_bytes()
            try:
                documents[hashlib.sha256(content).hexdigest()] = content.decode()
            except UnicodeDecodeError:
                continue  # a few tests are in other encodings on purpose
    return [text for _, text in sorted(documents.items()) if text]


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer: every text comes back byte for byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, documents: Iterable[str]) -> Tensor:
    """All documents one after the other, [N] int32. There must be at least one."""
    token_ids = array("i")
    for document in documents:
        token_ids.extend(tokenizer.encode(document).ids)
    return torch.frombuffer(token_ids, dtype=torch.int32)


class Windows:
    """Cuts a text into windows, shuffled anew for each pass by (seed, pass) alone: there is no state to save."""

    def __init__(self, token_ids: Tensor, num_tokens: int, seed: int) -> None:
        """Windows of `num_tokens` tokens and the one that follows. Raises RecipeError if there is not even one."""
        self._token_ids = token_ids
        self._offsets = torch.arange(num_tokens + 1)
        self._num_windows = (len(token_ids) - 1) // num_tokens
        self._seed = seed
        self._order = (-1, torch.empty(0, dtype=torch.int64))
        if self._num_windows < 1:
            raise RecipeError(f"The text has {len(token_ids)} tokens and a window needs {num_tokens + 1}: add text.")

    def batch(self, step: int, num_windows: int) -> Tensor:
        """The windows of one step, [num_windows, T + 1] int64."""
        first = step * num_windows
        starts = torch.stack([self._start(index) for index in range(first, first + num_windows)])  # [B]
        return self._token_ids[starts[:, None] + self._offsets].long()

    def _start(self, index: int) -> Tensor:
        turn, place = divmod(index, self._num_windows)
        if self._order[0] != turn:
            generator = torch.Generator().manual_seed(self._seed + turn)
            self._order = (turn, torch.randperm(self._num_windows, generator=generator))
        return self._order[1][place] * (len(self._offsets) - 1)
