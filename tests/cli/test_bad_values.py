"""One rule for all flags: a value that cannot be ends a command with status 2 and the flag's name before a start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from outrider.cli import __main__ as command
from outrider.cli.__main__ import app

NONSENSE = "/nope/nonsense"

ANY_TEXT = {"--stop", "--regex", "--grammar-begins-after", "--token", "--system", "--external-model"}
"""What a text, a name or a secret may be, nobody can say before it is used."""
WRITTEN = {"bench --json", "bench --plots", "tokens add --file"}
"""Where something is written to: whether it can be is found when it is."""
ON_THE_PATH = {"bench --rival-binary"}
"""What is installed is found when it is run."""
MODELS = {"--target", "--draft", "--ngram-table", "--target-device", "--draft-device", "--dtype", "--compile"}
"""What workers of a benchmark load: `bench.stack.preparing.prepared` takes it to the door of `outrider up`."""

ARGUMENTS: dict[str, list[str]] = {
    "generate": ["x"],
    "explain": ["x"],
    "run": ["x"],
    "trace": ["x"],
    "bench against": ["."],
    "bench quote": [__file__],
    "tokens add": ["bob"],
    "tokens remove": ["bob"],
}
"""What each of the others wants."""


def start(*_: object, **__: object) -> None:
    raise AssertionError("the value was not found")


def commands(found: Any, *path: str) -> Iterator[tuple[str, Any]]:
    for name, each in getattr(found, "commands", {}).items():
        yield from commands(each, *path, name)
    if path and path != ("tokens",):
        yield " ".join(path), found


def flags() -> Iterator[tuple[str, str]]:
    for name, found in commands(typer.main.get_command(app)):
        bench = name.partition(" ")[0] == "bench"
        for each in found.params:
            flag = each.opts[0]
            excused = {flag} & ANY_TEXT or {f"{'bench' if bench else name} {flag}"} & (WRITTEN | ON_THE_PATH)
            if flag.startswith("--") and not (each.is_flag or excused or (bench and flag in MODELS)):
                yield name, flag


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("serve", "run_services", "until_signalled", "generate_at", "explain_at", "trace_at", "hold"):
        monkeypatch.setattr(command, name, start)
    for name in ("bench.cli.asyncio.run", "recipes.distill.run.Distillation"):
        monkeypatch.setattr(name, start)


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize(("name", "flag"), [*flags()])
def test_a_value_that_cannot_be_is_named_by_its_flag(name: str, flag: str, tmp_path: Path) -> None:
    arguments = {**ARGUMENTS, "certs": [str(tmp_path / "made")], "distill": [str(tmp_path / "made")]}.get(name, [])
    given = [] if flag == "--token-ids" else arguments
    ended = CliRunner().invoke(app, [*name.split(), *given, flag, NONSENSE], env={"COLUMNS": "1000", "TERM": "dumb"})
    assert ended.exit_code == 2, ended.output or ended.exception
    assert ended.output.count(f"'{flag}'") == 1
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["plan", "--pair", "nonsense"], "--pair"),
        (["up", "--pair", "nonsense"], "--pair"),
        (["plan", "--target", "qwen3-8b", "--draft", "qwen3-0.6b", "--draft-device", "1:2"], "--draft-device"),
        (["bench", "--temperature", "nan"], "--temperature"),
        (["bench", "--delay-ms", "0,nan"], "--delay-ms"),
        (["bench", "--delay-ms", "inf"], "--delay-ms"),
        (["bench", "load", "--modes", "transformers"], "--modes"),
        (["bench", "never-slower", "--mode", "target"], "--mode"),
        (["bench", "never-slower", "--mode", "sync"], "--mode"),
        (["bench", "--external-openai", "here:80", "--external-model", "m"], "--external-openai"),
        (["bench", "gpu", "--dtype", "int8"], "--dtype"),
    ],
)
@pytest.mark.usefixtures("nothing_starts")
def test_values_that_look_right(arguments: list[str], flag: str) -> None:
    ended = CliRunner().invoke(app, arguments, env={"COLUMNS": "1000", "TERM": "dumb"})
    assert ended.exit_code == 2, ended.output or ended.exception
    assert ended.output.count(f"'{flag}'") == 1


def test_what_is_found_by_working_on_good_values_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["outrider", "plan", "--pair", "qwen3-8b+0.6b", "--target-device", "t4"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 1
