"""Prompts: bundled ones that stay as they are, and those of a user."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from bench.prompts import PromptsError, fingerprint, load_prompts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(ROOT / "models" / "target" / "tokenizer.json"))


def test_bundled_prompts_are_those_that_results_were_measured_with(tokenizer: Tokenizer) -> None:
    prompts = load_prompts(None, 24, tokenizer)
    assert {len(prompt) for prompt in prompts} == {128}
    assert len({tuple(prompt) for prompt in prompts}) == 24
    assert fingerprint(prompts) == "2abbc7446272362ffe5512c5f55cc7afb8fbf370c10e4884ab15f2b67ec9b833"


def test_prompts_repeat_if_there_are_too_few(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("def f(\n---\nimport os\n---\n  ")
    prompts = load_prompts(file, 3, tokenizer)
    assert prompts[0] == prompts[2] == tokenizer.encode("def f(").ids
    assert prompts[1] == tokenizer.encode("import os").ids


@pytest.mark.parametrize(("name", "content"), [("a.txt", "  \n"), ("a.json", "[]"), ("a.json", "{"), ("a.json", None)])
def test_files_without_prompts_are_refused(
    tmp_path: Path, tokenizer: Tokenizer, name: str, content: str | None
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(PromptsError, match=r"prompt"):
        load_prompts(tmp_path / name, 2, tokenizer)
