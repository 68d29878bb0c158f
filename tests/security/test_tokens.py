"""The token file: made by one command, read again when it changes, and never told."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coordinator.tokens import LOOK_SECONDS, Tokens
from outrider.cli.tokens import app
from outrider.core.protocol.errors import UnauthenticatedError
from outrider.token_file import TOKENS_MAX, TokenFileError, read_tokens


def run(*words: str) -> str:
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def test_a_token_is_printed_once_and_its_hash_kept(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    token = run("add", "ann", "--file", str(file), "--max-tokens", "7")
    assert token not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = Tokens(file).caller(f"Bearer {token}")
    assert (found.name, found.max_tokens, found.max_completions) == ("ann", 7, None)
    assert Tokens(file).caller(f"bearer {token}").name == "ann"
    another = run("add", "ann", "--file", str(file))
    assert [each.name for each in read_tokens(file)] == ["ann"]
    tokens = Tokens(file)
    assert tokens.caller(f"Bearer {another}").name == "ann"
    with pytest.raises(UnauthenticatedError):
        tokens.caller(f"Bearer {token}")


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic x", "Bearer\tx", "\0", "Bearer " + "x" * 10**6, "é"]
)
def test_whatever_else_is_shown_is_nobody(tmp_path: Path, header: str) -> None:
    run("add", "ann", "--file", str(tmp_path / "tokens.json"))
    with pytest.raises(UnauthenticatedError):
        Tokens(tmp_path / "tokens.json").caller(header)


def test_a_change_counts_without_a_restart(tmp_path: Path) -> None:
    now, file = 0.0, tmp_path / "tokens.json"
    ann = run("add", "ann", "--file", str(file))
    tokens = Tokens(file, lambda: now)
    ben = run("add", "ben", "--file", str(file))
    with pytest.raises(UnauthenticatedError):
        tokens.caller(f"Bearer {ben}")
    now += LOOK_SECONDS
    assert tokens.caller(f"Bearer {ben}").name == "ben"
    run("remove", "ann", "--file", str(file))
    now += LOOK_SECONDS
    with pytest.raises(UnauthenticatedError):
        tokens.caller(f"Bearer {ann}")
    for broken in (lambda: file.write_text("{"), lambda: os.unlink(file)):
        broken()
        now += LOOK_SECONDS
        assert tokens.caller(f"Bearer {ben}").name == "ben"


def entries(*more: str) -> str:
    """A file of these entries, each with a hash."""
    return '{"tokens": [' + ", ".join(f'{{"sha256": "{"0" * 64}", {each}}}' for each in more) + "]}"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"tokens": [{"name": "ann", "sha256": "s3cret"}]}',
        entries('"name": "a b"'),
        entries('"name": "ann", "max_tokens": 0'),
        entries('"name": "ann", "tokn": 1'),
        entries('"name": "ann"', '"name": "ann"'),
        entries(*(f'"name": "n{number}"' for number in range(TOKENS_MAX + 1))),
    ],
)
def test_a_file_that_is_no_token_file_is_refused_in_words(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokens.json").write_text(content)
    with pytest.raises(TokenFileError) as caught:
        Tokens(tmp_path / "tokens.json")
    assert "tokens.json" in str(caught.value)
    assert "s3cret" not in str(caught.value)
