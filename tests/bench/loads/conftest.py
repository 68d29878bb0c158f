"""One measurement on tiny models, of which each test here looks at a part: the table of what is never slower, and in
the same services other modes and requests that come by themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from bench.load import never_slower
from bench.load.cells import Result as Cells
from bench.load.measuring import Point, Sweep
from bench.load.options import LoadOptions, NeverSlowerOptions
from bench.load.result import Result
from bench.load.run import run
from bench.records import as_json
from bench.stack.models import Models
from tests.e2e.stack import save_tiny
from tests.engine.tiny_models import build
from tests.forkserver.process import forking

MODES = ("target", "outrider", "padded", "padded_sync_2")
CONCURRENCY, RATE = (1, 3), 20.0
DELAY_MS, NUM_BLOCKS, NUM_OPEN = 5.0, 2, 6

LONG = 300
"""More than the tiny models' 256 positions."""

PROMPT_LENGTHS, OUTPUT_LENGTHS = (4, 20), (8, 16)

TEMPERATURE = 0.8


class Measured(NamedTuple):
    """One measurement: its cells, and in JSON the loads that they and more are made of."""

    cells: Cells
    loads: dict[str, Any]

    def part(self, modes: Sequence[str], holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """As if these modes alone had been put under those loads alone of which `holds` is true."""
        return {
            **self.loads,
            "modes": {name: self.loads["modes"][name] for name in modes},
            "results": [
                {**at, "modes": {name: at["modes"][name] for name in modes}}
                for at in self.loads["results"]
                if holds(at)
            ],
            "answers": [each for each in self.loads["answers"] if each["mode"] in modes and holds(each)],
        }


@pytest.fixture(scope="package")
def forked(unhurried: None) -> Iterator[None]:
    """As everywhere, and for all of the room."""
    with forking():
        yield


@pytest.fixture(scope="package")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    return Models(
        target=str(save_tiny(build("llama", layers=2), folder / "target")),
        draft=str(save_tiny(build("llama"), folder / "draft")),
        dtype="float32",
        compile="off",
    )


@pytest.fixture(scope="package")
def measured(forked: None, models: Models, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("A1B2C3\n---\nZZTop\n---\nSome more")
    options = NeverSlowerOptions(
        models=models,
        mlp_widths=(0,),
        temperatures=(TEMPERATURE,),
        concurrency=CONCURRENCY,
        delays_ms=(0.0, DELAY_MS),
        long_prompt=LONG,
        num_blocks=NUM_BLOCKS,
    )
    found: list[Result] = []

    def with_more(options: LoadOptions, console: Console, sweep: Sweep) -> Result:
        options = replace(
            options,
            modes=MODES,
            rates=(RATE,),
            rate_seconds=NUM_OPEN / RATE,
            prompts=prompts,
            prompt_lengths=PROMPT_LENGTHS,
            output_lengths=OUTPUT_LENGTHS,
        )
        sweep = sweep._replace(points=[*sweep.points, Point("open", RATE, TEMPERATURE)])
        found.append(run(options, console, sweep))
        return replace(found[-1], results=[at for at in found[-1].results if at.loop == "closed"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(never_slower, "run", with_more)
        cells = never_slower.measure(options, Console(quiet=True))
    [loads] = found
    return Measured(cells, json.loads(json.dumps(as_json(loads))))
