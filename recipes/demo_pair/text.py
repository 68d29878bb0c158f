"""From source files to windows of token ids."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

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


def cut(token_ids: Tensor, num_tokens: int) -> Tensor:
    """Windows of `num_tokens` tokens and the one that follows, [M, T + 1]: a view of `token_ids` ([N]), end to end.

    Raises RecipeError if there is not even one.
    """
    if len(token_ids) <= num_tokens:
        raise RecipeError(f"The text has {len(token_ids)} tokens and a window needs {num_tokens + 1}: add text.")
    return token_ids.unfold(0, num_tokens + 1, num_tokens)


class Batch(NamedTuple):
    """What a model is trained on in one step."""

    windows: Tensor
    """[B, T + 1] int64."""
    temperatures: Tensor
    """At which a draft learns each window, [B] float32."""


class Text(Protocol):
    """What a model is trained on, step by step."""

    def batch(self, step: int) -> Batch:
        """The windows of one step."""
        ...


class Windows:
    """Batches of windows, shuffled anew for each pass by (seed, pass) alone: there is no state to save."""

    def __init__(self, windows: Tensor, temperatures: Sequence[float], batch_windows: int, seed: int) -> None:
        """Batches of `batch_windows` of the `windows`, [M, T + 1] token ids of any integer type.

        The windows take the `temperatures` by turns.
        """
        self._windows = windows
        self._temperatures = temperatures
        self._batch_windows = batch_windows
        self._seed = seed
        self._order = (-1, torch.empty(0, dtype=torch.int64))

    def batch(self, step: int) -> Batch:
        """The windows of one step."""
        first = step * self._batch_windows
        places = [self._place(index) for index in range(first, first + self._batch_windows)]
        temperatures = [self._temperatures[place % len(self._temperatures)] for place in places]
        return Batch(self._windows[places].long(), torch.tensor(temperatures))

    def _place(self, index: int) -> int:
        turn, place = divmod(index, len(self._windows))
        if self._order[0] != turn:
            generator = torch.Generator().manual_seed(self._seed + turn)
            self._order = (turn, torch.randperm(len(self._windows), generator=generator))
        return int(self._order[1][place])


class Turns:
    """Steps take turns among several texts, whose windows may differ in length. One may stand there more than once."""

    def __init__(self, texts: Sequence[Text]) -> None:
        self._texts = texts

    def batch(self, step: int) -> Batch:
        """The windows of one step."""
        turn, place = divmod(step, len(self._texts))
        text = self._texts[place]
        return text.batch(turn * self._texts.count(text) + self._texts[:place].count(text))
