"""The `outrider` command."""

from __future__ import annotations

import os
import sys

from outrider.machine.present_folder import leave_out_present_folder

leave_out_present_folder(sys.path, os.environ)  # before what follows looks for its packages there

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from outrider.rpc.environment import GRPC_ENVIRONMENT

os.environ |= GRPC_ENVIRONMENT | os.environ  # before what follows imports grpc

from outrider import __version__
from outrider.cli import flags
from outrider.cli.address import Address, checked_address
from outrider.cli.answer import json_object
from outrider.cli.calibration import CALIBRATION_SECONDS
from outrider.cli.certificates import AUTHORITY, DAYS_DEFAULT, DAYS_MAX, make_certificates
from outrider.cli.chat import Conversation, hold
from outrider.cli.commands import Commands
from outrider.cli.display import Display
from outrider.cli.doctor import examine, examine_server, findings_object, print_findings
from outrider.cli.door import check
from outrider.cli.explain import explain as explain_at
from outrider.cli.explain import explanations_object, print_explanations
from outrider.cli.generate import conclude
from outrider.cli.generate import generate as generate_at
from outrider.cli.group import grouped
from outrider.cli.plan import FORECAST, forecast_object, print_forecast
from outrider.cli.ports import HOST
from outrider.cli.request import Request
from outrider.cli.run import run as run_services
from outrider.cli.run import serve, until_signalled
from outrider.cli.tokens import app as tokens_app
from outrider.cli.trace import print_timeline, timeline_object
from outrider.cli.trace import trace as trace_at
from outrider.cli.up_options import COORDINATOR_PORT, UpOptions
from outrider.cli.value import finite
from outrider.client import Credentials, GenerationOptions, SamplingParams
from outrider.core.protocol.errors import InvalidRequestError, OutriderError
from outrider.core.protocol.printable import uncontrolled
from outrider.core.protocol.validation import LOGPROBS_MAX
from outrider.doctor.finding import Level
from outrider.output import standard_output
from outrider.plan.forecast import Forecast

_EXIT_ERROR = 1
_EXIT_USAGE = 2
"""As command-line tools exit when they are asked for what cannot be."""
_EXIT_INTERRUPTED = 130
"""As a shell reports a command that Ctrl-C ended."""

_IS_CHECKOUT = (Path(__file__).parents[2] / "recipes/distill/cli.py").is_file()
"""Whether `bench` and `recipes` stand beside the product; elsewhere packages of these names are somebody else's."""


class CheckoutMissingError(OutriderError):
    """A command was asked for that only a checkout has."""

    def __init__(self, command: str) -> None:
        super().__init__(
            f"`outrider {command}` is not part of the installed package; from a checkout of the repository: "
            "pip install --editable '.[engine,bench]'"
        )


app = typer.Typer(
    cls=Commands,
    help="Asynchronous speculative decoding: the target's own tokens, sooner.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
if _IS_CHECKOUT:
    from bench.cli import app as bench_app
    from recipes.distill.cli import distill

    app.add_typer(bench_app, name="bench", cls=Commands)
    app.command()(distill)
else:

    @app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def bench() -> None:
        """Measure Outrider; only from a checkout."""
        raise CheckoutMissingError("bench")

    @app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def distill() -> None:
        """Train a draft model for a target; only from a checkout."""
        raise CheckoutMissingError("distill")


app.add_typer(tokens_app, name="tokens", cls=Commands)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        print(f"outrider {__version__}")
        raise typer.Exit


@app.callback()
def outrider(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """What every command takes."""


@app.command()
@grouped(options=flags.SERVICES)
def up(options: UpOptions) -> None:
    """Start the services on this machine and keep them up until Ctrl-C, which drains them.

    One of each kind, unless more are asked for; those beyond the first of a kind take free ports. A second Ctrl-C ends
    them at once. Everything else that a service can be told is an OUTRIDER_* variable; see `python -m coordinator
    --help`, `python -m draft_service --help` and `python -m verify_service --help`.
    """
    until_signalled(serve(check(options), Console()))


@app.command()
@grouped(request=flags.REQUEST, credentials=flags.CREDENTIALS)
def generate(
    request: Request,
    target_only: Annotated[bool, typer.Option("--target-only", help="Do not speculate; the text is the same.")] = False,
    logprobs: Annotated[
        int | None,
        typer.Option(
            help="With --json: each token's log-probability and this many alternatives.",
            metavar="N",
            min=0,
            max=LOGPROBS_MAX,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object in place of text and table.")] = False,
    address: Address = f"{HOST}:{COORDINATOR_PORT}",
    *,
    credentials: Credentials,
) -> None:
    """Continue PROMPT with a running coordinator.

    Text goes to standard output; in a terminal its colours tell where each token came from.
    """
    request = request.but(speculate=not target_only, num_logprobs=logprobs)
    num_completions = request.options.num_completions
    if as_json:
        answer = asyncio.run(generate_at(request, address, None, credentials))
        print(json.dumps(json_object(answer, as_list=num_completions is not None, with_logprobs=logprobs is not None)))
        return
    out = Console()
    prompt = request.prompt if isinstance(request.prompt, str) else ""
    display = Display(out, prompt, num_completions=num_completions)
    answer = asyncio.run(generate_at(request, address, display, credentials))
    conclude(answer, None, out, Console(stderr=True))


@app.command()
@grouped(request=flags.REQUEST, credentials=flags.CREDENTIALS)
def explain(
    request: Request,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also ask the target alone, and tell what a token takes with and without.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object in place of sentences.")] = False,
    address: Address = f"{HOST}:{COORDINATOR_PORT}",
    *,
    credentials: Credentials,
) -> None:
    """Say why speculation pays for PROMPT or does not, at a running coordinator.

    The request is made once, and its own figures tell: who guessed, how often and how deep the guesses were accepted,
    and whether they came in time. The most important sentence comes first.
    """
    found = asyncio.run(explain_at(request, address, compare=compare, credentials=credentials))
    if as_json:
        print(json.dumps(explanations_object(found, as_list=request.options.num_completions is not None)))
    else:
        print_explanations(found, Console())


@app.command()
@grouped(credentials=flags.CREDENTIALS)
def trace(
    request_id: Annotated[
        str, typer.Argument(help="Its id, that of an OpenAI answer, or its trace's.", metavar="REQUEST_ID")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object in place of lines.")] = False,
    address: Address = f"{HOST}:{COORDINATOR_PORT}",
    *,
    credentials: Credentials,
) -> None:
    """Print what became of a request that is over, step by step at all services, as they remember it.

    No collector is needed: each service keeps what it did for the latest thousand requests or so. Whoever has a token
    is told of the requests that were made with it.
    """
    found = asyncio.run(trace_at(request_id, address, credentials))
    if as_json:
        print(json.dumps(timeline_object(found)))
    else:
        print_timeline(found, Console())


@app.command()
@grouped(request=flags.REQUEST, options=flags.PAIR)
def run(request: Request, options: UpOptions) -> None:
    """Start the services, continue PROMPT, compare with the target alone, and stop the services.

    The services take free ports, so that others that are up are left alone.
    """
    if until_signalled(run_services(check(options), request, Console(), Console(stderr=True))):
        raise typer.Exit(_EXIT_INTERRUPTED)


@app.command()
@grouped(pair=flags.PAIR_IF_WANTED, credentials=flags.CREDENTIALS)
def doctor(
    pair: Callable[[], UpOptions],
    address: Annotated[
        str | None,
        typer.Option(
            help="Look at the services of a running coordinator in place of this machine's.", callback=checked_address
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="How long to measure.", min=1.0, callback=finite)
    ] = CALIBRATION_SECONDS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object in place of lines.")] = False,
    *,
    credentials: Credentials,
) -> None:
    """Look at machine, installation and services, measure what speculation gains, and say what to change.

    Without --address it starts the pair, as `outrider run` does. Exits with 1 if something does not work.
    """
    err = Console(stderr=True)
    if address is None:
        found = examine(check(pair()), seconds, err)
    else:
        found = examine_server(address, seconds, credentials, err)
    healthy = True

    async def tell() -> None:
        nonlocal healthy
        if not as_json:
            healthy = await print_findings(found, Console())
            return
        gathered = [each async for each in found]
        healthy = all(each.level is not Level.PROBLEM for each in gathered)
        print(json.dumps(findings_object(gathered)))

    if until_signalled(tell()):
        raise typer.Exit(_EXIT_INTERRUPTED)
    if not healthy:
        raise typer.Exit(_EXIT_ERROR)


@app.command()
@grouped(found=FORECAST)
def plan(
    found: Forecast,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object in place of table and words.")] = False,
) -> None:
    """Say what a pair on such devices would need and gain, and whether to co-locate instead. No device is asked."""
    if as_json:
        print(json.dumps(forecast_object(found)))
    else:
        print_forecast(found, Console())


@app.command()
@grouped(credentials=flags.CREDENTIALS)
def chat(
    system: Annotated[str | None, typer.Option(help="What the model is told before all else.", metavar="TEXT")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer; default: the server's.", min=1)
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="0 takes the most likely token; above it tokens are drawn.", min=0, callback=finite)
    ] = 0.0,
    target_only: Annotated[bool, typer.Option("--target-only", help="Do not speculate; the text is the same.")] = False,
    address: Address = f"{HOST}:{COORDINATOR_PORT}",
    *,
    credentials: Credentials,
) -> None:
    """Talk with the target of a running coordinator, by the model's own chat template.

    Each line of standard input is answered. In a terminal the colours tell where each token came from, and /help tells
    what else can be said.
    """
    out = Console()
    options = GenerationOptions(
        sampling=SamplingParams(temperature=temperature),
        draw_seed=True,
        max_tokens=max_tokens,
        speculate=not target_only,
    )
    with suppress(ModuleNotFoundError):
        import readline  # noqa: F401  gives `input` editing and a history
    hold(Conversation(address, options, system, out, credentials), partial(input, "> " if out.is_terminal else ""))


@app.command()
def certs(
    folder: Annotated[Path, typer.Argument(help="Where to write them.", metavar="DIR")],
    days: Annotated[int, typer.Option(help="How long they are good.", min=1, max=DAYS_MAX)] = DAYS_DEFAULT,
    host: Annotated[
        list[str] | None, typer.Option(help="Another name or address of the coordinator; may be repeated.")
    ] = None,
) -> None:
    """Make an authority, and a certificate and a key for each service, to try TLS with.

    `outrider up --tls DIR` uses them. Services read them again when they are made anew.
    """
    make_certificates(folder, days, host or ())
    print(f"{folder}: {AUTHORITY} for clients; keys for their owner alone; good for {days} days")


def main() -> None:
    """Runs the command line; errors go to standard error in words."""
    with standard_output("outrider"):
        try:
            app()
        except OutriderError as error:
            Console(stderr=True).print(Text.assemble(("error: ", "bold red"), uncontrolled(str(error))), soft_wrap=True)
            sys.exit(_EXIT_USAGE if isinstance(error, InvalidRequestError) else _EXIT_ERROR)


if __name__ == "__main__":
    main()
