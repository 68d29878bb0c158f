"""What the models are asked to continue."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from outrider.core.protocol.errors import OutriderError

BUNDLED_PROMPTS = Path(__file__).with_name("prompts.json")
"""Beginnings of source files that the bundled pair was not trained on, about 128 tokens each. Held fixed, so that
results can be compared from one day to another."""


class PromptsError(OutriderError):
    """There are no prompts, or too few."""


def load_prompts(path: Path | None, count: int | None, tokenizer: Tokenizer) -> list[list[int]]:
    """The first `count` prompts as token ids; they repeat if there are fewer. None: each once.

    A file is JSON as `prompts.json` here, or text in which lines of `---` part the prompts. Raises PromptsError.
    """
    texts = _texts(path or BUNDLED_PROMPTS)
    if not texts:
        raise PromptsError(f"{path} holds no prompt; put one text after another with lines of --- between them")
    return [tokenizer.encode(texts[index % len(texts)]).ids for index in range(count or len(texts))]


def tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder. Raises OutriderError."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise OutriderError(f"{folder} has no tokenizer.json; name a model folder with --target FOLDER")
    return Tokenizer.from_file(str(file))


def fingerprint(prompts: Sequence[Sequence[int]]) -> str:
    """SHA-256 of the token ids: results with the same one were measured with the same prompts."""
    return hashlib.sha256(json.dumps([list(prompt) for prompt in prompts]).encode()).hexdigest()


def _texts(path: Path) -> list[str]:
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PromptsError(f"cannot read prompts from {path}: {error.strerror}") from error
    if path.suffix == ".json":
        try:
            return [each["text"] for each in json.loads(content)["prompts"]]
        except (ValueError, KeyError, TypeError) as error:
            raise PromptsError(f'{path} is not of the form {{"prompts": [{{"text": "..."}}]}}') from error
    return [text for text in content.split("\n---\n") if text.strip()]
