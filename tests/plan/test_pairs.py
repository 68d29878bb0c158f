"""Pairs of public models, and folders that do not fit each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from outrider.cli import flags
from outrider.cli.__main__ import app
from outrider.plan.fit import MisfitError, check_fit
from outrider.plan.pair import PAIRS, UnknownPairError, parse_pair

MODELS = Path(__file__).parents[2] / "models"


def tokenizer(folder: Path, vocabulary: dict[str, int]) -> str:
    folder.mkdir()
    content = {"model": {"vocab": vocabulary}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "config.json").write_bytes((MODELS / "draft" / "config.json").read_bytes())
    return str(folder)


def test_every_pair_has_a_draft_that_is_much_smaller() -> None:
    assert {"qwen3-8b+pard-0.6b", "llama-3.1-70b+1b"} <= PAIRS.keys()
    for pair in PAIRS.values():
        assert pair.target_shape.num_parameters > 5 * pair.draft_shape.num_parameters
        assert "/" in pair.target
        assert "/" in pair.draft


def test_a_pair_is_found_by_name_and_others_are_listed() -> None:
    assert parse_pair("Qwen3-8B+0.6B").draft == "Qwen/Qwen3-0.6B"
    with pytest.raises(UnknownPairError, match=r"use one of .*qwen3-8b\+pard-0\.6b"):
        parse_pair("qwen9")


def test_folders_fit_by_what_ids_mean(tmp_path: Path) -> None:
    target = tokenizer(tmp_path / "target", {"a": 0, "b": 1})
    check_fit(target, tokenizer(tmp_path / "same", {"b": 1, "a": 0}))
    check_fit(target, "a/hub-name")
    check_fit(str(MODELS / "target"), str(MODELS / "draft"))
    with pytest.raises(MisfitError, match="another meaning"):
        check_fit(target, tokenizer(tmp_path / "other", {"a": 1, "b": 0}))
    (tmp_path / "same" / "tokenizer.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(MisfitError, match="is no tokenizer"):
        check_fit(target, str(tmp_path / "same"))


def test_plan_takes_a_pair_or_two_models_that_fit(tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert json.loads(run(app, ["plan", "--pair", "qwen3-32b+0.6b", "--json"]).stdout)["best"]
    both = run(app, ["plan", "--pair", "qwen3-32b+0.6b", "--draft", "qwen3-0.6b"])
    none = run(app, ["plan", "--target", "qwen3-32b"])
    unknown = run(app, ["plan", "--pair", "qwen9"])
    target = tokenizer(tmp_path / "target", {"a": 0})
    misfit = run(app, ["plan", "--target", target, "--draft", tokenizer(tmp_path / "draft", {"b": 0})])
    assert [each.exit_code for each in (both, none, unknown)] == [2, 2, 2]
    assert "'--pair'" in unknown.output
    assert isinstance(misfit.exception, MisfitError)
    assert "another meaning" in str(misfit.exception)


def test_up_serves_the_models_of_a_pair_or_those_that_are_named() -> None:
    given = {parameter.name: parameter.default for parameter in flags.SERVICES.parameters}
    options = flags.SERVICES.make(**given | {"pair": "qwen3-8b+pard-0.6b"})
    assert (options.target, options.draft) == ("Qwen/Qwen3-8B", "amd/PARD-Qwen3-0.6B")
    named_twice = CliRunner().invoke(app, ["up", "--pair", "qwen3-8b+0.6b", "--target", "mine"])
    assert named_twice.exit_code == 2
    assert "names both models" in named_twice.output + named_twice.stderr
