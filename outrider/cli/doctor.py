"""What `outrider doctor` looks at, in order: machine, installation, services, and what speculation gains."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from rich.console import Console
from rich.text import Text

import outrider
from outrider.cli.board import Board
from outrider.cli.calibration import calibrate, judge
from outrider.cli.ports import PortTakenError, free_addresses
from outrider.cli.up import services
from outrider.cli.up_options import COORDINATOR_PORT, DRAFT_PORT, HTTP_PORT, VERIFY_PORT, UpOptions
from outrider.client import Credentials, GenerationClient
from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.printable import uncontrolled
from outrider.doctor.devices import look_at_devices
from outrider.doctor.finding import Finding, Level
from outrider.doctor.machine import look_at_machine
from outrider.doctor.packages import look_at_packages
from outrider.doctor.server import look_at_server

_STYLES: Final = {Level.GOOD: ("✓", "green"), Level.NOTE: ("!", "yellow"), Level.PROBLEM: ("✗", "red")}


async def examine(options: UpOptions, seconds: float, err: Console) -> AsyncIterator[Finding]:
    """Looks at this machine, then starts the pair of `options` and measures it. If it fails, `err` shows logs."""
    for finding in itertools.chain(look_at_machine(), look_at_packages(), _look_at_ports()):
        yield finding
    for finding in await asyncio.to_thread(lambda: list(look_at_devices())):
        yield finding
    try:
        with Board(err, show_logs=False, names=options.names).watching() as board:
            async with services(replace(options, compile_first=True), board) as running:
                board.settle()
                async for finding in examine_server(running.coordinator, seconds, Credentials(), err):
                    yield finding
    except OutriderError as error:
        yield Finding(Level.PROBLEM, "services", str(error), "change what it names, then ask again")


async def examine_server(
    address: str, seconds: float, credentials: Credentials, err: Console
) -> AsyncIterator[Finding]:
    """Looks at the services behind the coordinator at `address`, and measures them."""
    async with GenerationClient(address, credentials) as client:
        info = await client.server_info()
    for finding in look_at_server(info, outrider.__version__):
        yield finding
    with err.status(f"Answers with and without speculation, for {seconds:.0f} s"):
        pairs = await calibrate(address, seconds, credentials)
    for finding in judge(pairs):
        yield finding


def _look_at_ports() -> Iterator[Finding]:
    wanted = {
        "--port": COORDINATOR_PORT,
        "--draft-port": DRAFT_PORT,
        "--verify-port": VERIFY_PORT,
        "--http-port": HTTP_PORT,
    }
    for flag, port in wanted.items():
        try:
            free_addresses({flag: (port, 1)})
        except PortTakenError as error:
            yield Finding(Level.NOTE, "ports", str(error), "`outrider up` needs it, `outrider run` does not")
            return
    yield Finding(Level.GOOD, "ports", f"{', '.join(map(str, sorted(wanted.values())))} are free")


async def print_findings(found: AsyncIterator[Finding], out: Console) -> bool:
    """A line for each as it comes, and one for what to do. Returns whether none is a problem."""
    good = True
    async for finding in found:
        sign, style = _STYLES[finding.level]
        line = Text.assemble((f"{sign} {finding.subject:15}", style), uncontrolled(finding.text))
        out.print(line, soft_wrap=True)
        if finding.advice:
            out.print(Text(f"  {'':15}→ {uncontrolled(finding.advice)}", "bold"), soft_wrap=True)
        good = good and finding.level is not Level.PROBLEM
    return good


def findings_object(found: Sequence[Finding]) -> dict[str, Any]:
    """The object that `outrider doctor --json` prints."""
    return {"findings": [finding._asdict() for finding in found]}
