"""Flags that `generate` and `run` share, one name each."""

from __future__ import annotations

from typing import Annotated

import typer

from outrider.cli.request import Request
from outrider.client import GREEDY, SamplingParams

Prompt = Annotated[str | None, typer.Argument(help="Text to continue.", show_default=False)]
TokenIds = Annotated[
    str | None, typer.Option(help="Token ids to continue, such as 1,2,3; in place of PROMPT.", metavar="IDS")
]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens to generate; default: the server's.")]
Temperature = Annotated[float, typer.Option(help="0 takes the most likely token; above it tokens are drawn.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens up to this probability; 1 keeps all.")]
TopK = Annotated[int, typer.Option(help="Keep this many of the likeliest tokens; 0 keeps all.")]
MinP = Annotated[float, typer.Option(help="Keep tokens this likely relative to the likeliest; 0 keeps all.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1 disfavours tokens of prompt and output.")]
PresencePenalty = Annotated[float, typer.Option(help="Taken once from each token that stands in the output.")]
FrequencyPenalty = Annotated[float, typer.Option(help="Taken from a token for each time it stands in the output.")]
Seed = Annotated[
    int | None, typer.Option(help="The same seed gives the same text; default: the server draws one.", min=0)
]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.", metavar="TEXT")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on after the model's end-of-text token.")]
MaxDraftTokens = Annotated[
    int | None, typer.Option(help="Most draft tokens verified in one round; default and bound: the server's.", min=0)
]
TreeWidth = Annotated[
    int | None,
    typer.Option(help="Guesses per place; 1 drafts a chain, 0 as many as are worth it. Default: the server's.", min=0),
]
Completions = Annotated[
    int | None,
    typer.Option(help="So many texts, each with a seed of its own; they share the reading of the prompt.", min=1),
]
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
        help="Compiled forward passes: on, off or auto. Default: on where a C++ compiler is found; a model's first "
        "start then takes a minute longer.",
        metavar="on|off|auto",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="auto, float32, bfloat16 or float16; default: float32 on a CPU, else that of the stored weights."
    ),
]


def request(
    *,
    prompt: str | None,
    token_ids: str | None = None,
    max_tokens: int | None,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    repetition_penalty: float,
    presence_penalty: float,
    frequency_penalty: float,
    seed: int | None,
    stop: list[str] | None,
    ignore_eos: bool,
    max_draft_tokens: int | None,
    tree_width: int | None,
    completions: int | None,
    target_only: bool = False,
    num_logprobs: int | None = None,
) -> Request:
    """The request that the flags describe. Raises typer.BadParameter; all bounds are the server's to check."""
    if (prompt is None) == (token_ids is None):
        raise typer.BadParameter("give either PROMPT or --token-ids")
    return Request(
        prompt=prompt if prompt is not None else _parsed_token_ids(token_ids or ""),
        sampling=SamplingParams(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=GREEDY.seed if seed is None else seed,
        ),
        draw_seed=seed is None,
        max_tokens=max_tokens,
        stop=stop or (),
        ignore_eos=ignore_eos,
        num_logprobs=num_logprobs,
        target_only=target_only,
        max_draft_tokens=max_draft_tokens,
        tree_width=tree_width,
        num_completions=completions,
    )


def _parsed_token_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no list of token ids; write --token-ids 1,2,3") from error
