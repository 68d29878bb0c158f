"""Flags of the commands. Those of a request are made from the fields of its options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from outrider.cli.group import Group, parameters_of
from outrider.cli.model_flags import (
    Compile,
    CompileFirst,
    Coordinators,
    Draft,
    DraftDevice,
    Drafters,
    Drafts,
    Dtype,
    InTurn,
    NgramTable,
    NoDraft,
    PairName,
    Parallel,
    Target,
    TargetDevice,
    Verifiers,
    parsed_pair,
)
from outrider.cli.prompt import parse_prediction, parse_prompt
from outrider.cli.request import Request
from outrider.cli.token import read_token
from outrider.cli.up_options import COORDINATOR_PORT, DRAFT_PORT, HTTP_PORT, VERIFY_PORT, UpOptions, choose_models
from outrider.client import GREEDY, Credentials, GenerationOptions, SamplingParams, TlsFiles, Transport
from outrider.core.protocol.address import PORT_MAX
from outrider.core.protocol.errors import InvalidRequestError
from outrider.core.protocol.grammar import Grammar, GrammarKind
from outrider.core.protocol.validation import (
    COMPLETIONS_MAX,
    DRAFT_TOKENS_MAX,
    SEED_MAX,
    TREE_WIDTH_MAX,
    UINT32_MAX,
    Violations,
    check_sampling,
    check_stop,
)

_PORTS: Any = {"min": 0, "max": PORT_MAX}


@dataclass(frozen=True, kw_only=True)
class _ModelFlags:
    """What to serve, and on what."""

    target: Target = None
    draft: Draft = None
    pair: PairName = None
    ngram_table: NgramTable = None
    target_device: TargetDevice = "cpu"
    draft_device: DraftDevice = None
    in_turn: InTurn = False
    parallel: Parallel = None
    dtype: Dtype = None
    compiled: CompileFirst = None


@dataclass(frozen=True, kw_only=True)
class _UpFlags(_ModelFlags):
    """And how many of each, and where."""

    draft: Drafts = None
    compiled: Compile = None
    no_draft: NoDraft = False
    verifiers: Verifiers = 1
    drafters: Drafters = 1
    coordinators: Coordinators = 1
    port: Annotated[int, typer.Option(help="Port of the coordinator; 0 takes a free one.", **_PORTS)] = COORDINATOR_PORT
    draft_port: Annotated[int, typer.Option(help="The same of the draft service.", **_PORTS)] = DRAFT_PORT
    verify_port: Annotated[int, typer.Option(help="The same of the verify service.", **_PORTS)] = VERIFY_PORT
    tls: Annotated[
        Path | None,
        typer.Option(help="Speak TLS everywhere, with the certificates that `outrider certs` has made.", metavar="DIR"),
    ] = None
    http_port: Annotated[
        int | None, typer.Option(help="The same of the coordinator's OpenAI-compatible HTTP interface.", **_PORTS)
    ] = HTTP_PORT


def _pair(**flags: Any) -> UpOptions:
    """One service of each kind, on free ports."""
    return _services(_UpFlags(**flags, port=0, draft_port=0, verify_port=0, http_port=None))


def _named(flags: _UpFlags) -> tuple[str | None, str | None]:
    """Target and draft. Raises typer.BadParameter if they are named in two ways."""
    pair = parsed_pair(flags.pair, flags.target, flags.draft)
    return (flags.target, flags.draft) if pair is None else (pair.target, pair.draft)


def _services(flags: _UpFlags) -> UpOptions:
    """Raises NoModelError if the bundled models are wanted and not there."""
    default_device = flags.target_device if flags.in_turn else "cpu"
    return UpOptions(
        **choose_models(*_named(flags), flags.ngram_table, no_draft=flags.no_draft)._asdict(),
        num_verifiers=flags.verifiers,
        num_drafters=flags.drafters,
        num_coordinators=flags.coordinators,
        target_device=flags.target_device,
        draft_device=default_device if flags.draft_device is None else flags.draft_device,
        in_turn=flags.in_turn,
        parallel=flags.parallel,
        dtype=flags.dtype,
        compiled=flags.compiled,
        port=flags.port,
        draft_port=flags.draft_port,
        verify_port=flags.verify_port,
        http_port=flags.http_port,
        tls=flags.tls,
    )


SERVICES = Group(parameters_of(_UpFlags), lambda **flags: _services(_UpFlags(**flags)))
"""All that `outrider up` is told."""

PAIR = Group(parameters_of(_ModelFlags), _pair)
"""One target and one draft model, wherever there is room."""

PAIR_IF_WANTED = Group(parameters_of(_ModelFlags), lambda **flags: partial(_pair, **flags))
"""The same for a command that may do without: what makes them, and finds whether they are there."""


@dataclass(frozen=True, kw_only=True)
class _PromptFlags:
    prompt: Annotated[
        str | None, typer.Argument(help="Text to continue; - takes it from standard input.", show_default=False)
    ] = None
    token_ids: Annotated[
        str | None, typer.Option(help="Token ids to continue, such as 1,2,3; in place of PROMPT.", metavar="IDS")
    ] = None


_SourceFile: Any = {"exists": True, "dir_okay": False, "metavar": "FILE"}


@dataclass(frozen=True, kw_only=True)
class _GrammarFlags:
    """At most one of the sources."""

    json_schema: Annotated[
        Path | None, typer.Option(help="The text is JSON that the JSON Schema in this file allows.", **_SourceFile)
    ] = None
    regex: Annotated[
        str | None, typer.Option(help="The text is one that this regular expression matches.", metavar="REGEX")
    ] = None
    lark: Annotated[
        Path | None, typer.Option(help="The text is of the grammar in this file, in Lark syntax.", **_SourceFile)
    ] = None
    grammar_begins_after: Annotated[
        str, typer.Option(help="All of it but what ends with the first of this, such as </think>.", metavar="TEXT")
    ] = ""

    def grammar(self) -> Grammar | None:
        """Raises typer.BadParameter."""
        sources = {
            kind: source if isinstance(source, str) else source.read_text(encoding="utf-8", errors="replace")
            for kind in GrammarKind
            if (source := getattr(self, kind)) is not None
        }
        if len(sources) > 1:
            raise typer.BadParameter("a text has one grammar: give one of --json-schema, --regex and --lark")
        return next((Grammar(*each, self.grammar_begins_after) for each in sources.items()), None)


_OPTION_FLAGS: Mapping[str, Any] = {
    "add_special_tokens": typer.Option(
        help="Whether PROMPT gets the special tokens that the target's tokenizer adds, such as a BOS."
    ),
    "max_tokens": typer.Option(help="Most tokens to generate; default: the server's.", min=1, max=UINT32_MAX),
    "temperature": typer.Option(help="0 takes the most likely token; above it tokens are drawn."),
    "top_p": typer.Option(help="Keep the likeliest tokens up to this probability; 1 keeps all."),
    "top_k": typer.Option(help="Keep this many of the likeliest tokens; 0 keeps all.", min=0, max=UINT32_MAX),
    "min_p": typer.Option(help="Keep tokens this likely relative to the likeliest; 0 keeps all."),
    "repetition_penalty": typer.Option(help="Above 1 disfavours tokens of prompt and output."),
    "presence_penalty": typer.Option(help="Taken once from each token that stands in the output."),
    "frequency_penalty": typer.Option(help="Taken from a token for each time it stands in the output."),
    "seed": typer.Option(help="The same seed gives the same text; default: the server draws one.", min=0, max=SEED_MAX),
    "stop": typer.Option(help="End before this text; may be repeated.", metavar="TEXT"),
    "ignore_eos": typer.Option("--ignore-eos", help="Go on after the model's end-of-text token."),
    "max_draft_tokens": typer.Option(
        help="Most draft tokens verified in one round; default and bound: the server's.", min=0, max=DRAFT_TOKENS_MAX
    ),
    "tree_width": typer.Option(
        help="Guesses per place; 1 drafts a chain, 0 as many as are worth it. Default: the server's.",
        min=0,
        max=TREE_WIDTH_MAX,
    ),
    "prediction": typer.Option(
        help="File with what the text will mostly be: guesses come from it as long as they are right.",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        readable=True,
        show_default=False,
    ),
    "num_completions": typer.Option(
        "--completions",
        help="So many texts, each with a seed of its own; they share the prefill of the prompt.",
        min=1,
        max=COMPLETIONS_MAX,
    ),
}
"""By the fields of `GenerationOptions` and `SamplingParams`, in the order of the help."""

_SAMPLING = "sampling"

_UNGIVEN: Mapping[str, Any] = {"seed": int | None, "stop": list[str] | None, "prediction": Path | None}
"""Types of the flags that are None where they are not given, though the field has another default."""


def _option_parameters() -> list[inspect.Parameter]:
    known = {each.name: each for kind in (SamplingParams, GenerationOptions) for each in parameters_of(kind)}
    return [
        known[name].replace(
            annotation=Annotated[_UNGIVEN.get(name, known[name].annotation), flag],
            default=None if name in _UNGIVEN else known[name].default,
        )
        for name, flag in _OPTION_FLAGS.items()
    ]


def _request(
    prompt: str | None,
    token_ids: str | None,
    seed: int | None,
    stop: list[str] | None,
    prediction: Path | None,
    **fields: Any,
) -> Request:
    """The request that the flags describe. Raises typer.BadParameter; what depends on the model is the server's to
    check, and on its settings."""
    grammar = _GrammarFlags(**{each.name: fields.pop(each.name) for each in parameters_of(_GrammarFlags)}).grammar()
    sampling = {name: fields.pop(name) for name in SamplingParams.__slots__ if name in fields}
    options = GenerationOptions(
        sampling=SamplingParams(**sampling, seed=GREEDY.seed if seed is None else seed, grammar=grammar),
        draw_seed=seed is None,
        stop=stop or (),
        prediction="" if prediction is None else parse_prediction(prediction),
        **fields,
    )
    _check(options)
    return Request(parse_prompt(prompt, token_ids), options)


def _check(options: GenerationOptions) -> None:
    found = Violations()
    check_sampling(found, options.sampling, UINT32_MAX, _SAMPLING)
    check_stop(found, options.stop, "stop")
    try:
        found.raise_if_any()
    except InvalidRequestError as error:
        field, description = error.violations[0]
        flag = field.removeprefix(f"{_SAMPLING}.").removeprefix("grammar.").replace("_", "-")
        raise typer.BadParameter(description, param_hint=f"'--{flag}'") from error


@dataclass(frozen=True, kw_only=True)
class _CredentialFlags:
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            envvar="OUTRIDER_TLS_CA",
            help="Speak TLS with a coordinator of this authority (ca.pem of `outrider certs`).",
            **_SourceFile,
        ),
    ] = None
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate to show, if the coordinator wants one.", **_SourceFile)
    ] = None
    tls_key: Annotated[Path | None, typer.Option(help="Its key.", **_SourceFile)] = None
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File of the token that says who asks; without it the variable OUTRIDER_TOKEN.", metavar="FILE"
        ),
    ] = None
    token: Annotated[str, typer.Option(envvar="OUTRIDER_TOKEN", hidden=True)] = ""


def _credentials(
    tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None, token_file: Path | None, token: str
) -> Credentials:
    """Raises typer.BadParameter."""
    if (tls_cert is None) != (tls_key is None) or (tls_cert is not None and tls_ca is None):
        raise typer.BadParameter("--tls-cert, --tls-key and --tls-ca go together")
    files = None if tls_ca is None else TlsFiles(str(tls_cert or ""), str(tls_key or ""), str(tls_ca))
    return Credentials(Transport(files), token.strip() if token_file is None else read_token(token_file))


CREDENTIALS = Group(parameters_of(_CredentialFlags), _credentials)
"""How the coordinator is known, and who asks it."""

REQUEST = Group([*parameters_of(_PromptFlags), *_option_parameters(), *parameters_of(_GrammarFlags)], _request)
"""A prompt and how to continue it."""
