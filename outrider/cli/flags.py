"""Flags of the commands. Those of a request are made from the fields of its options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from outrider.cli.group import Group, parameters_of
from outrider.cli.request import Request
from outrider.cli.up import COORDINATOR_PORT, DRAFT_PORT, VERIFY_PORT, UpOptions, choose_models
from outrider.client import GREEDY, GenerationOptions, SamplingParams

Target = Annotated[
    str | None, typer.Option(help="Folder or hub name of the target model; default: the bundled one.", metavar="MODEL")
]
Draft = Annotated[
    str | None,
    typer.Option(
        help="The same of the draft model, or ngram: guesses from what the text repeats, without a model. Default: the "
        "bundled one, or none if --target is given.",
        metavar="MODEL",
    ),
]
Drafts = Annotated[
    str | None,
    typer.Option(
        "--draft",
        help="The same of the draft model, or ngram: guesses from what the text repeats, without a model. Several with "
        "commas: each is tried, and used as far as it is worth it. Default: the bundled one, or none if --target is "
        "given.",
        metavar="MODEL",
    ),
]
NgramTable = Annotated[
    str | None,
    typer.Option(
        envvar="OUTRIDER_NGRAM_TABLE",
        help="File of python -m recipes.ngram_table, for the verifier and for drafters without a model. Default: the "
        "bundled one, or none if --target is given.",
        metavar="FILE",
    ),
]
Verifiers = Annotated[int, typer.Option(help="How many verify services to start.", min=1)]
Drafters = Annotated[int, typer.Option(help="How many draft services to start of each draft model.", min=1)]
Coordinators = Annotated[int, typer.Option(help="How many coordinators to start; they share the others.", min=1)]
NoDraft = Annotated[bool, typer.Option("--no-draft", help="Start no draft service: the target alone.")]
TargetDevice = Annotated[str, typer.Option(help="Device of the target: cpu, cuda, cuda:0, ...")]
DraftDevice = Annotated[str, typer.Option(help="Device of the draft: cpu, cuda, cuda:0, ...")]
Compile = Annotated[
    str | None,
    typer.Option(
        "--compile",
        help="Compiled forward passes: first (before serving, if that works here), on (or not at all), auto "
        "(meanwhile) or off. Default: first on a CPU; a model's first start then takes a minute longer.",
        metavar="first|on|auto|off",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="auto, float32, bfloat16 or float16; default: float32 on a CPU, else that of the stored weights."
    ),
]


@dataclass(frozen=True, kw_only=True)
class _ModelFlags:
    """What to serve, and on what."""

    target: Target = None
    draft: Draft = None
    ngram_table: NgramTable = None
    target_device: TargetDevice = "cpu"
    draft_device: DraftDevice = "cpu"
    dtype: Dtype = None
    compiled: Compile = None


@dataclass(frozen=True, kw_only=True)
class _UpFlags(_ModelFlags):
    """And how many of each, and where."""

    draft: Drafts = None
    no_draft: NoDraft = False
    verifiers: Verifiers = 1
    drafters: Drafters = 1
    coordinators: Coordinators = 1
    port: Annotated[int, typer.Option(help="Port of the coordinator; 0 takes a free one.")] = COORDINATOR_PORT
    draft_port: Annotated[int, typer.Option(help="Port of the draft service.")] = DRAFT_PORT
    verify_port: Annotated[int, typer.Option(help="Port of the verify service.")] = VERIFY_PORT


def _pair(**flags: Any) -> UpOptions:
    """One service of each kind, on free ports."""
    return _services(_UpFlags(**flags, port=0, draft_port=0, verify_port=0))


def _services(flags: _UpFlags) -> UpOptions:
    """Raises NoModelError if the bundled models are wanted and not there."""
    return UpOptions(
        **choose_models(flags.target, flags.draft, flags.ngram_table, no_draft=flags.no_draft)._asdict(),
        num_verifiers=flags.verifiers,
        num_drafters=flags.drafters,
        num_coordinators=flags.coordinators,
        target_device=flags.target_device,
        draft_device=flags.draft_device,
        dtype=flags.dtype,
        compiled=flags.compiled,
        port=flags.port,
        draft_port=flags.draft_port,
        verify_port=flags.verify_port,
    )


SERVICES = Group(parameters_of(_UpFlags), lambda **flags: _services(_UpFlags(**flags)))
"""All that `outrider up` is told."""

PAIR = Group(parameters_of(_ModelFlags), _pair)
"""One target and one draft model, wherever there is room."""


@dataclass(frozen=True, kw_only=True)
class _PromptFlags:
    prompt: Annotated[str | None, typer.Argument(help="Text to continue.", show_default=False)] = None
    token_ids: Annotated[
        str | None, typer.Option(help="Token ids to continue, such as 1,2,3; in place of PROMPT.", metavar="IDS")
    ] = None


_OPTION_FLAGS: Mapping[str, Any] = {
    "max_tokens": typer.Option(help="Most tokens to generate; default: the server's."),
    "temperature": typer.Option(help="0 takes the most likely token; above it tokens are drawn."),
    "top_p": typer.Option(help="Keep the likeliest tokens up to this probability; 1 keeps all."),
    "top_k": typer.Option(help="Keep this many of the likeliest tokens; 0 keeps all."),
    "min_p": typer.Option(help="Keep tokens this likely relative to the likeliest; 0 keeps all."),
    "repetition_penalty": typer.Option(help="Above 1 disfavours tokens of prompt and output."),
    "presence_penalty": typer.Option(help="Taken once from each token that stands in the output."),
    "frequency_penalty": typer.Option(help="Taken from a token for each time it stands in the output."),
    "seed": typer.Option(help="The same seed gives the same text; default: the server draws one.", min=0),
    "stop": typer.Option(help="End before this text; may be repeated.", metavar="TEXT"),
    "ignore_eos": typer.Option("--ignore-eos", help="Go on after the model's end-of-text token."),
    "max_draft_tokens": typer.Option(
        help="Most draft tokens verified in one round; default and bound: the server's.", min=0
    ),
    "tree_width": typer.Option(
        help="Guesses per place; 1 drafts a chain, 0 as many as are worth it. Default: the server's.", min=0
    ),
    "num_completions": typer.Option(
        "--completions",
        help="So many texts, each with a seed of its own; they share the prefill of the prompt.",
        min=1,
    ),
}
"""By the fields of `GenerationOptions` and `SamplingParams`, in the order of the help."""

_UNGIVEN: Mapping[str, Any] = {"seed": int | None, "stop": list[str] | None}
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
    prompt: str | None, token_ids: str | None, seed: int | None, stop: list[str] | None, **fields: Any
) -> Request:
    """The request that the flags describe. Raises typer.BadParameter; all bounds are the server's to check."""
    if (prompt is None) == (token_ids is None):
        raise typer.BadParameter("give either PROMPT or --token-ids")
    sampling = {name: fields.pop(name) for name in SamplingParams.__slots__ if name in fields}
    options = GenerationOptions(
        sampling=SamplingParams(**sampling, seed=GREEDY.seed if seed is None else seed),
        draw_seed=seed is None,
        stop=stop or (),
        **fields,
    )
    return Request(prompt if prompt is not None else _parsed_token_ids(token_ids or ""), options)


def _parsed_token_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no list of token ids; write --token-ids 1,2,3") from error


REQUEST = Group([*parameters_of(_PromptFlags), *_option_parameters()], _request)
"""A prompt and how to continue it."""
