"""`python -m tests.chaos --minutes 10`: every part in turn. Exits with 1 if a promise was not kept."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

from bench.machine import facts

from .campaign import PROCESS_FAULTS
from .phases import OVERTIME_SECONDS, PHASES, SHOWN_MAX, Found, Settings
from .plot import plot
from .streams import GrpcClient, HttpClient

CLIENTS = {client.name: client for client in (GrpcClient, HttpClient)}


async def run(
    minutes: float, seed: int, names: list[str], clients: list[str], process_faults: list[str], folder: Path
) -> bool:
    """Runs the named parts and writes what they found after each. Returns whether all promises were kept."""
    total = sum(PHASES[name][1] for name in names)
    result: dict[str, Any] = {"minutes": minutes, "seed": seed, "machine": facts(), "parts": {}}
    started = time.monotonic()
    kept = True
    for name in names:
        part, share = PHASES[name]

        def say(text: str, name: str = name) -> None:
            print(f"{time.monotonic() - started:7.0f} s  {name}: {text}", flush=True)

        seconds = 60.0 * minutes * share / total
        say(f"begins, for {seconds:.0f} s")
        try:
            async with asyncio.timeout(seconds + OVERTIME_SECONDS):
                found = await part(
                    Settings(seconds, seed, say, [CLIENTS[client] for client in clients], process_faults)
                )
        except Exception as error:
            found = Found({}, [f"it broke off: {type(error).__name__}: {error}"])
        kept = kept and not found.problems
        result["parts"][name] = found.figures | {
            "num_problems": len(found.problems),
            "problems": found.problems[:SHOWN_MAX],
        }
        say(f"ends with {len(found.problems)} problems")
        for problem in found.problems[:5]:
            say(f"  {problem[:400]}")
        _write(result, folder)
    return kept


def _write(result: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chaos.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    recovery = result["parts"].get("faults", {}).get("recovery_seconds")
    if recovery:
        plot(recovery, folder / "recovery.svg")


def main() -> None:
    """Reads the flags, runs, and tells where the result is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all parts together, beside their starts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(PHASES), default=list(PHASES), help="parts to run")
    parser.add_argument("--clients", nargs="+", choices=list(CLIENTS), default=list(CLIENTS), help="of the streams")
    parser.add_argument(
        "--process-faults",
        nargs="+",
        choices=PROCESS_FAULTS,
        default=PROCESS_FAULTS,
        help="what happens to processes in `faults`",
    )
    parser.add_argument("--out", type=Path, default=Path("build/chaos"), help="folder of chaos.json and recovery.svg")
    options = parser.parse_args()
    os.environ["PYTHONFAULTHANDLER"] = "1"  # a service that does not end tells where it is
    kept = asyncio.run(
        run(options.minutes, options.seed, options.only, options.clients, options.process_faults, options.out)
    )
    print(f"{options.out}/chaos.json: {'every promise was kept' if kept else 'promises were not kept'}")
    raise SystemExit(0 if kept else 1)


if __name__ == "__main__":
    main()
