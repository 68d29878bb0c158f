"""Counts n-grams in text: a static table for the n-gram drafter, below what a line tells about itself.

    python -m recipes.ngram_table build/ngrams.safetensors

counts what the demonstration pair was trained on, the standard library of the running Python without the held-out
files; TEXT names other files, --tokenizer another pair's tokenizer.json.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from outrider.core.propose.ngram_static import SHARE_UNIT, STATIC_ORDERS, TOKEN_BITS, VOCAB_SIZE_MAX
from outrider.core.protocol.vocabulary import vocabulary_sha256
from outrider.output import standard_output
from outrider.worker.ngram_file import FORMAT, load_ngrams
from recipes.demo_pair.recipe import Recipe
from recipes.demo_pair.text import encode, read_documents

_BUNDLED_TOKENIZER = Path(__file__).parents[1] / "models" / "target" / "tokenizer.json"


def count(token_ids: Tensor, num_tokens: int, *, width: int, min_count: int) -> dict[str, Tensor]:
    """One order of a table, by the names that it has in the file.

    `token_ids` [N] is the text. Kept are the contexts of `num_tokens` tokens that stand there at least `min_count`
    times, each with its `width` most frequent continuations (the lowest id first among equals). A continuation seen c
    times of N, after a context with u different ones, has probability c / (N + u) (Witten and Bell, 1991, method C).
    """
    text = token_ids.long()
    contexts = torch.zeros(max(len(text) - num_tokens, 0), dtype=torch.int64)
    for age in range(num_tokens):
        last = num_tokens - 1 - age
        contexts |= text[last : last + len(contexts)] << (TOKEN_BITS * age)
    contexts, which, num_seen = contexts.unique(return_inverse=True, return_counts=True)
    kept = num_seen >= min_count
    # Contexts that are kept, numbered from 0 in ascending order; pairs of them and what follows, with their counts.
    number = kept.cumsum(0) - 1
    follows = text[num_tokens:][kept[which]]
    pairs, pair_counts = (number[which[kept[which]]] * VOCAB_SIZE_MAX + follows).unique(return_counts=True)
    contexts, num_seen = contexts[kept], num_seen[kept]
    owners, followers = pairs // VOCAB_SIZE_MAX, pairs % VOCAB_SIZE_MAX
    num_different = owners.bincount(minlength=len(contexts))
    probabilities = pair_counts / (num_seen + num_different)[owners]
    # By context, then by count: both sorts are stable, so that equals keep the order of their ids.
    ranked = pair_counts.argsort(descending=True, stable=True)
    ranked = ranked[owners[ranked].argsort(stable=True)]
    place = torch.arange(len(ranked)) - (num_different.cumsum(0) - num_different)[owners[ranked]]
    ranked, place = ranked[place < width], place[place < width]
    token_table = torch.zeros(len(contexts), width, dtype=torch.int32)
    share_table = torch.zeros(len(contexts), width, dtype=torch.uint8)
    token_table[owners[ranked], place] = followers[ranked].int()
    share_table[owners[ranked], place] = (probabilities[ranked] * SHARE_UNIT).to(torch.uint8)  # rounded down: sum <= 1
    return {
        f"contexts.{num_tokens}": contexts,
        f"token_ids.{num_tokens}": token_table.flatten(),
        f"shares.{num_tokens}": share_table.flatten(),
    }


def write(out: Path, documents: Sequence[str], tokenizer_file: Path, *, width: int, min_count: int) -> int:
    """Counts the documents into the file `out`. Returns the number of tokens counted."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    token_ids = encode(tokenizer, documents)
    tensors: dict[str, Tensor] = {}
    for num_tokens in STATIC_ORDERS:
        tensors |= count(token_ids, num_tokens, width=width, min_count=min_count)
    out.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "format": FORMAT,
        "width": str(width),
        "vocab_size": str(tokenizer.get_vocab_size(with_added_tokens=True)),
        "tokenizer_sha256": vocabulary_sha256(tokenizer_file.read_bytes()),
    }
    save_file(tensors, out, metadata)
    load_ngrams(out)
    return len(token_ids)


def read_texts(paths: Sequence[Path]) -> list[str]:
    """The files, and all files below the folders, that are UTF-8 and not empty, in order of their paths."""
    files = sorted(
        {file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()}
    )
    texts: list[str] = []
    for file in files:
        try:
            texts.append(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
    return [text for text in texts if text]


def main(
    out: Annotated[Path, typer.Argument(help="File to write.")],
    text: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Files and folders to count; default: the demonstration pair's training text.", exists=True
        ),
    ] = None,
    tokenizer: Annotated[
        Path, typer.Option(help="tokenizer.json of the target.", exists=True, dir_okay=False)
    ] = _BUNDLED_TOKENIZER,
    width: Annotated[int, typer.Option(min=1, max=8, help="Continuations kept for each context.")] = 3,
    min_count: Annotated[int, typer.Option(min=1, help="Occurrences that a context needs to be kept.")] = 64,
) -> None:
    """Count n-grams in text, for --ngram-table of the draft service."""
    console = Console()
    if text:
        documents = read_texts(text)
    else:
        documents = read_documents(Path(sysconfig.get_path("stdlib")))[Recipe().num_held_out_files :]
    if not documents:
        console.print("There is no text in UTF-8 to count: name other files.", style="red")
        raise typer.Exit(1)
    with console.status(f"Counting {len(documents)} documents"):
        num_tokens = write(out, documents, tokenizer, width=width, min_count=min_count)
    console.print(f"{out}: {num_tokens:,} tokens counted, {out.stat().st_size:,} bytes.", highlight=False)


if __name__ == "__main__":
    with standard_output("python -m recipes.ngram_table"):
        typer.run(main)
