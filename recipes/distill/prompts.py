"""What texts begin with: prompts of a file, or pieces of running text, some of them held out."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from recipes.demo_pair.recipe import RecipeError
from recipes.demo_pair.text import read_documents

PIECE_CHARACTERS = 4000
"""Length to which running text is cut, at a line's end: pieces can be held out where there is one file."""

TOKEN_CHARACTERS_MAX = 16
"""As many characters of running text are read for each token of a prompt; few tokens are longer."""

HELD_OUT_PART = 20
"""One of so many prompts is held out, and at least one."""

HELD_OUT_MAX = 40
"""Most that are held out: as many as the recipe of the bundled pair holds out, and in the same order the same ones."""


class Prompts(NamedTuple):
    """Prompts as token ids, those for training and those held out."""

    training: Sequence[Sequence[int]]
    held_out: Sequence[Sequence[int]]


class Kind(Enum):
    """How a passage becomes a prompt."""

    RUNNING = "running"
    """Any line of it may begin one, behind what the tokenizer puts in front of a text."""
    PROMPT = "prompt"
    """It is one, which the tokenizer begins."""
    TEMPLATED = "templated"
    """It is one, which the chat template has begun."""


class Passage(NamedTuple):
    """Text before it is tokens."""

    text: str
    kind: Kind


def read(path: Path | None, target: Path) -> Sequence[Passage]:
    """The passages of a file or folder, or of the standard library of this Python.

    A line of a .jsonl file is a string, or an object with `prompt`, `text` or `messages`; the last are put into words
    by the target's own chat template. Raises RecipeError if one is neither, or if the file cannot be read.
    """
    if path is None:
        return [Passage(text, Kind.RUNNING) for text in read_documents(Path(sysconfig.get_path("stdlib")))]
    if path.suffix == ".jsonl":
        return _by_content([passage for passage in _lines(path, target) if passage.text])
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    found: list[Passage] = []
    for file in files:
        try:
            found += [Passage(piece, Kind.RUNNING) for piece in _pieces(file.read_text(encoding="utf-8"))]
        except UnicodeDecodeError:
            continue  # a folder of texts may hold other files
        except OSError as error:
            raise RecipeError(f"{file} cannot be read ({error.strerror}): name a file or folder of text.") from error
    return _by_content(found)


class Wanted(NamedTuple):
    """How many prompts, and how long."""

    num_training: int
    num_held_out: int
    num_tokens: int
    """Most tokens of each."""


def cut(passages: Sequence[Passage], tokenizer: Tokenizer, wanted: Wanted, seed: int) -> Prompts:
    """Prompts of passages that `seed` draws, those held out of other passages than those for training.

    Raises RecipeError if there are fewer than two passages.
    """
    if len(passages) < 2:
        raise RecipeError(
            f"There are {len(passages)} pieces of text, and one must be held out: add prompts, one a line in a .jsonl "
            f"file, or running text of more than {PIECE_CHARACTERS} characters."
        )
    num_kept = min(HELD_OUT_MAX, max(1, len(passages) // HELD_OUT_PART))
    generator = torch.Generator().manual_seed(seed)
    begin = tokenizer.encode("").ids

    def prompt(text: str, kind: Kind) -> list[int]:
        if kind is Kind.RUNNING:
            place = int(torch.randint(len(text), (), generator=generator))
            first = text.rfind("\n", 0, place) + 1
            text = text[first : first + wanted.num_tokens * TOKEN_CHARACTERS_MAX]
            return [*begin, *tokenizer.encode(text, add_special_tokens=False).ids][: wanted.num_tokens]
        return tokenizer.encode(text, add_special_tokens=kind is Kind.PROMPT).ids[: wanted.num_tokens]

    def drawn(some: Sequence[Passage], count: int) -> list[list[int]]:
        # Running text is drawn as often as it is long, so that any line of it may begin a prompt.
        weights = torch.tensor([len(text) if kind is Kind.RUNNING else 1 for text, kind in some]).float()
        places = torch.multinomial(weights, count, replacement=True, generator=generator)
        return [prompt(*some[place]) for place in places.tolist()]

    return Prompts(drawn(passages[num_kept:], wanted.num_training), drawn(passages[:num_kept], wanted.num_held_out))


def _by_content(passages: Sequence[Passage]) -> list[Passage]:
    """Different passages in an order as good as a shuffle, yet the same wherever they lie."""
    return sorted(set(passages), key=lambda passage: hashlib.sha256(passage.text.encode()).digest())


def _pieces(text: str) -> list[str]:
    pieces = [""]
    for line in text.splitlines(keepends=True):
        if len(pieces[-1]) + len(line) > PIECE_CHARACTERS and pieces[-1]:
            pieces.append("")
        pieces[-1] += line
    return [piece for piece in pieces if piece.strip()]


def _lines(path: Path, target: Path) -> list[Passage]:
    found: list[Passage] = []
    template: Any = None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read ({error}): name a file of JSON lines in UTF-8.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise RecipeError(f"{path}, line {number} is no JSON ({error}): write one prompt a line.") from error
        match value:
            case str():
                found.append(Passage(value, Kind.PROMPT))
            case {"prompt": str(text)} | {"text": str(text)}:
                found.append(Passage(text, Kind.PROMPT))
            case {"messages": list(messages)}:
                template = template or AutoTokenizer.from_pretrained(target, trust_remote_code=False)
                try:
                    text = template.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                except Exception as error:  # templates and jinja raise whatever they meet
                    raise RecipeError(
                        f"{path}, line {number}: the target's chat template does not take these messages ({error})."
                    ) from error
                found.append(Passage(text, Kind.TEMPLATED))
            case _:
                raise RecipeError(
                    f'{path}, line {number} is no prompt: write a string, {{"prompt": "..."}} or {{"messages": [...]}}.'
                )
    return found
