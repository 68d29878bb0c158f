"""Counting a static n-gram table: what is counted, what is written, and what is refused when it is read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file
from tokenizers import Tokenizer
from typer.testing import CliRunner

from outrider.core.propose.ngram import NgramTable, extend
from outrider.core.propose.ngram_static import SHARE_UNIT, STATIC_ORDERS, TOKEN_BITS, VOCAB_SIZE_MAX
from outrider.core.protocol.errors import UnsupportedModelError
from outrider.core.protocol.vocabulary import vocabulary_sha256
from outrider.worker.ngram_file import FORMAT, load_ngrams
from recipes.ngram_table import count, main, read_texts, write

TOKENIZER = Path(__file__).parents[2] / "models/target/tokenizer.json"
LOOP = "for name in names:\n    print(name)\n" * 8


def packed(token_ids: list[int]) -> int:
    return sum(token_id << (TOKEN_BITS * age) for age, token_id in enumerate(reversed(token_ids)))


@pytest.mark.parametrize("num_tokens", STATIC_ORDERS)
@pytest.mark.parametrize(("width", "min_count"), [(2, 1), (3, 4), (8, 40)])
def test_counts_are_those_of_a_plain_counter(num_tokens: int, width: int, min_count: int) -> None:
    text = torch.randint(6, (600,), dtype=torch.int32, generator=torch.Generator().manual_seed(num_tokens))
    token_ids: list[int] = text.tolist()
    expected: dict[int, Counter[int]] = {}
    for last in range(num_tokens, len(token_ids)):
        context = packed(token_ids[last - num_tokens : last])
        expected.setdefault(context, Counter())[token_ids[last]] += 1
    expected = {context: counts for context, counts in sorted(expected.items()) if counts.total() >= min_count}
    made = count(text, num_tokens, width=width, min_count=min_count)
    assert made[f"contexts.{num_tokens}"].tolist() == list(expected)
    token_table = made[f"token_ids.{num_tokens}"].view(-1, width).tolist()
    share_table = made[f"shares.{num_tokens}"].view(-1, width).tolist()
    for counts, row, shares in zip(expected.values(), token_table, share_table, strict=True):
        ranked = sorted(counts, key=lambda token_id: (-counts[token_id], token_id))[:width]
        assert row[: len(ranked)] == ranked
        denominator = counts.total() + len(counts)
        assert shares == [
            *(int(counts[token_id] / denominator * SHARE_UNIT) for token_id in ranked),
            *[0] * (width - len(ranked)),
        ]


def test_the_largest_token_ids_are_told_apart() -> None:
    largest = VOCAB_SIZE_MAX - 1
    made = count(torch.tensor([largest, 1, largest, largest, 1, largest - 1]), 2, width=2, min_count=1)
    contexts = made["contexts.2"].tolist()
    assert contexts == sorted([packed([largest, 1]), packed([1, largest]), packed([largest, largest])])
    assert made["token_ids.2"].view(-1, 2).tolist()[contexts.index(packed([largest, 1]))] == [largest - 1, largest]


def test_a_text_too_short_for_an_order_has_none_of_it() -> None:
    for num_tokens in STATIC_ORDERS:
        assert len(count(torch.tensor([1]), num_tokens, width=2, min_count=1)[f"contexts.{num_tokens}"]) == 0


def test_what_was_counted_is_guessed(tmp_path: Path) -> None:
    out = tmp_path / "new" / "ngrams.safetensors"
    num_counted = write(out, [LOOP], TOKENIZER, width=2, min_count=4)
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    assert num_counted == len(tokenizer.encode(LOOP).ids)
    file = load_ngrams(out)
    assert file.tokenizer_sha256 == vocabulary_sha256(TOKENIZER.read_bytes())
    assert file.vocab_size == tokenizer.get_vocab_size()
    body: list[int] = tokenizer.encode("for name in names:\n    print(name)\n").ids
    table = NgramTable(body[:3], file.table)
    context = table.context
    for token_id in body[3:]:
        assert table.guesses(context, 1)[0].token_id == token_id
        context = extend(context, token_id)


def test_texts_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "folder/deep").mkdir(parents=True)
    (tmp_path / "folder/deep/b.txt").write_text("second", encoding="utf-8")
    (tmp_path / "folder/a.md").write_text("first", encoding="utf-8")
    (tmp_path / "folder/c").touch()
    (tmp_path / "folder/d").write_bytes(b"\xe9")
    (tmp_path / "single").write_text("third", encoding="utf-8")
    assert read_texts([tmp_path / "single", tmp_path / "folder"]) == ["first", "second", "third"]


def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(main)
    return app


def test_command_line_counts_what_it_is_given_and_refuses_nothing(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "ngrams.safetensors"
    source.mkdir()
    runner = CliRunner(env={"COLUMNS": "200"})
    refused = runner.invoke(command(), [str(out), str(source)])
    assert refused.exit_code == 1
    assert "no text in UTF-8" in refused.output
    assert not out.exists()
    (source / "loop.py").write_text(LOOP, encoding="utf-8")
    made = runner.invoke(command(), [str(out), str(source), "--min-count", "4"])
    assert made.exit_code == 0
    assert f"{out.stat().st_size:,} bytes" in made.output
    load_ngrams(out)


GOOD = {
    "contexts.1": torch.tensor([3, 4]),
    "token_ids.1": torch.tensor([1, 2], dtype=torch.int32),
    "shares.1": torch.tensor([9, 9], dtype=torch.uint8),
}
METADATA = {"format": FORMAT, "width": "1", "vocab_size": "10", "tokenizer_sha256": "0" * 64}


@pytest.mark.parametrize(
    ("tensors", "metadata", "text"),
    [
        ({}, {"format": "pt"}, "its format is pt"),
        ({}, {"width": ""}, "invalid literal"),
        ({}, {"width": "0"}, "no n-grams"),
        ({}, {"vocab_size": "0"}, "its vocabulary of 0"),
        ({}, {"vocab_size": str(VOCAB_SIZE_MAX + 1)}, "is not between"),
        ({}, {"vocab_size": "2"}, "token id 2 is out of range"),
        ({"contexts.1": torch.tensor([4, 3])}, {}, "ascending"),
        ({"contexts.1": torch.tensor([[3, 4]])}, {}, "one axis of int64"),
        ({"contexts.1": torch.tensor([3.0, 4.0])}, {}, "one axis of int64"),
        ({"token_ids.1": torch.tensor([1, 2])}, {}, "one axis of int32"),
        ({"shares.1": torch.tensor([9], dtype=torch.uint8)}, {}, "do not have 1 continuations"),
        ({"shares.1": None}, {}, "shares.1"),
        ({"contexts.1": None}, {}, "no n-grams"),
    ],
)
def test_a_file_that_is_not_in_order_is_refused_in_words(
    tensors: dict[str, torch.Tensor | None], metadata: dict[str, str], text: str, tmp_path: Path
) -> None:
    path = tmp_path / "ngrams.safetensors"
    save_file(GOOD, path, METADATA)
    load_ngrams(path)
    changed = {name: tensor for name, tensor in (GOOD | tensors).items() if tensor is not None}
    save_file(changed, path, METADATA | metadata)
    with pytest.raises(UnsupportedModelError, match=text) as refusal:
        load_ngrams(path)
    assert "recipes.ngram_table" in str(refusal.value)


def test_a_file_that_is_none_of_ours_is_refused_in_words(tmp_path: Path) -> None:
    for name, content in {
        "missing": None,
        "empty": b"",
        "text": b"no table at all",
        "cut": b"\x40" + bytes(20),
    }.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UnsupportedModelError, match="no usable n-gram table"):
            load_ngrams(path)
