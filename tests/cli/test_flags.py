"""Flags of the commands follow from the options of a request."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest
import typer.core
import typer.main

from outrider.cli import flags
from outrider.cli.__main__ import app
from outrider.cli.up_options import UpOptions
from outrider.client import GenerationOptions, Grammar, GrammarKind, SamplingParams

ROOT = Path(__file__).parents[2]

PARAMETERS_MAX = 10
"""A function that takes more has not found its nouns."""

NOT_OFFERED = {"logit_bias", "stop_token_ids", "report_rounds"}
"""What the command line leaves to the client library."""

SAID_OTHERWISE = {"sampling", "draw_seed", "speculate", "num_logprobs", "resume", "grammar"}
"""What other flags say, or `generate` alone, or what the client says by itself."""

GRAMMAR_FLAGS = {"json_schema", "regex", "lark", "grammar_begins_after"}
"""How a grammar is given."""


def test_every_option_has_a_flag() -> None:
    options = {field.name for kind in (GenerationOptions, SamplingParams) for field in fields(kind)}
    made = {parameter.name for parameter in flags.REQUEST.parameters} - {"prompt", "token_ids"} - GRAMMAR_FLAGS
    assert made | NOT_OFFERED | SAID_OTHERWISE == options
    assert not made & (NOT_OFFERED | SAID_OTHERWISE)


def test_flags_that_are_not_given_are_the_options_defaults() -> None:
    given = {parameter.name: parameter.default for parameter in flags.REQUEST.parameters}
    request = flags.REQUEST.make(**given | {"prompt": "x"})
    assert (request.prompt, request.options) == ("x", GenerationOptions(draw_seed=True))


def test_a_grammar_is_one_source_of_a_file_or_of_the_flag_itself(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text('{"enum": ["ä"]}', encoding="utf-8")
    given = {parameter.name: parameter.default for parameter in flags.REQUEST.parameters} | {"prompt": "x"}
    for said, grammar in (
        ({"json_schema": source}, Grammar(GrammarKind.JSON_SCHEMA, '{"enum": ["ä"]}')),
        ({"lark": source}, Grammar(GrammarKind.LARK, '{"enum": ["ä"]}')),
        ({"regex": "a+", "grammar_begins_after": "="}, Grammar(GrammarKind.REGEX, "a+", "=")),
    ):
        assert flags.REQUEST.make(**given | said).options.sampling.grammar == grammar
    with pytest.raises(typer.BadParameter, match="one of --json-schema, --regex and --lark"):
        flags.REQUEST.make(**given | {"json_schema": source, "regex": "a"})
    with pytest.raises(typer.BadParameter, match="at least 1") as found:
        flags.REQUEST.make(**given | {"regex": ""})
    assert found.value.param_hint == "'--regex'"


def test_run_and_generate_take_a_request_by_the_same_flags() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    found = [
        {flag for parameter in group.commands[name].params for flag in parameter.opts} for name in ("generate", "run")
    ]
    assert found[0] & found[1] >= {"--max-tokens", "--temperature", "--seed", "--stop", "--completions", "--token-ids"}
    credentials = {"--tls-ca", "--tls-cert", "--tls-key", "--token-file", "--token"}
    assert found[0] - found[1] == {"--target-only", "--logprobs", "--json", "--address"} | credentials


def test_what_is_not_said_of_the_services_is_their_default() -> None:
    given = {parameter.name: parameter.default for parameter in flags.SERVICES.parameters}
    assert flags.SERVICES.make(**given | {"target": "t"}) == UpOptions(target="t", draft=None, http_port=8080)
    assert flags.SERVICES.make(**given | {"target": "t", "parallel": "off"}).parallel == "off"
    in_turn = flags.SERVICES.make(**given | {"target": "t", "draft": "d", "in_turn": True, "target_device": "cuda:1"})
    assert (in_turn.in_turn, in_turn.draft_device, in_turn.drafts) == (True, "cuda:1", [])
    pair = flags.PAIR.make(
        **{name: given[name] for name in ("dtype", "compiled")}, target="t", draft="d", ngram_table="n"
    )
    assert pair == UpOptions(target="t", draft="d", ngram_table="n", port=0, draft_port=0, verify_port=0)


@pytest.mark.parametrize("folder", ["outrider/cli", "outrider/client", "coordinator"])
def test_no_function_has_too_many_parameters(folder: str) -> None:
    found = [
        (path.name, node.name)
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "bench.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]) > PARAMETERS_MAX
    ]
    assert found == []
