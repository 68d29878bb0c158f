"""Matrix products of few rows, our own and those of torch's library: alone and in whole steps, in turn, on one thread.

`python -m bench.micro.products` prints the tables of docs/experiments/0018-few-rows.md and of
docs/decisions/0059-twelve-bits.md; `--json` prints one object with machine facts. Each model is compiled twice, which
takes a minute or two. Whole steps are ours alone: a package's weights move to huge pages, which the library's cannot.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Final
from unittest import mock

import torch
import transformers
import typer
from torch import Tensor, nn

from bench import machine
from bench.columns import default_console, new_table
from bench.micro.steps import CONTEXT_TOKENS, Arm, median_step_ms
from outrider.engine import native
from outrider.engine.compile import ahead
from outrider.engine.compile.linear import PackedLinear
from outrider.engine.engine import Engine
from outrider.engine.load.folder import load_model
from outrider.worker.config import WorkerConfig

NUM_ROUNDS = 40
"""Measured products of each kind; both kinds take turns."""

NUMS_ROWS = (1, 16, 32, 64, 128, 256)
NUMS_STEP_TOKENS = (1, 4, 8, 16)
LAYERS = ("16384x384", "384x16384")
MODELS = (Path("models/target"), Path("models/draft"))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LIBRARY, WHOLE, OWN = "library", "own, whole", "own"
KINDS: Final = (LIBRARY, WHOLE, OWN)
"""Of torch's library; ours with weights as they are; and ours as a worker runs them, which keeps bfloat16 in twelve
bits where that is faster."""

Medians = dict[str, dict[int, float]]
"""Milliseconds by kind and number of rows."""


def main(
    model: Annotated[
        list[Path] | None,
        typer.Option(help="Model folder for whole steps; may be repeated. Default: the bundled ones."),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(help="Outputs x inputs of a product alone; may be repeated. Default: those of the wide target."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measures products of few rows on one thread."""
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    native.load(WorkerConfig.model_validate({"model": "", "listen": ""}).compile_cache)
    number_type = DTYPES.get(dtype)
    if number_type is None:
        raise SystemExit(f"there are no products of our own for {dtype}; try another --dtype")
    products: dict[str, Medians] = {}
    for each in layer or LAYERS:
        num_outputs, num_inputs = map(int, each.split("x"))
        products[each] = median_product_ms(num_outputs, num_inputs, number_type, NUMS_ROWS)
    steps: dict[str, Medians] = {}
    for folder in model or MODELS:
        arms = {kind: Arm(_engine(folder, dtype, kind)) for kind in (WHOLE, OWN)}
        steps[folder.name] = median_step_ms(arms, NUMS_STEP_TOKENS)
    if as_json:
        print(json.dumps({"dtype": dtype, "products_ms": products, "steps_ms": steps, "machine": machine.facts()}))
        return
    _show(f"Whole steps, {dtype}, {CONTEXT_TOKENS} tokens of context", steps)
    _show(f"Products alone, {dtype}", products)


def median_product_ms(num_outputs: int, num_inputs: int, dtype: torch.dtype, nums_rows: Sequence[int]) -> Medians:
    """What x [rows, num_inputs] times the weights of a layer takes, again and again, so that they stay in the cache.

    The library's weights are in its own order, as they are in a package: no kind copies them.
    """
    plain = nn.Linear(num_inputs, num_outputs, bias=False, dtype=dtype)
    reordered = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), None)
    products: dict[str, Callable[[Tensor], Tensor]] = {
        LIBRARY: lambda x: torch.ops.mkldnn._linear_pointwise(x, reordered, None, "none", [], ""),
        OWN: PackedLinear(plain),
    }
    with _packing(WHOLE):
        products[WHOLE] = PackedLinear(plain)
    medians: Medians = {kind: {} for kind in KINDS}
    with torch.inference_mode():
        for num_rows in nums_rows:
            x = torch.randn(num_rows, num_inputs).to(dtype)
            taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for _ in range(NUM_ROUNDS):
                for kind in KINDS:
                    taken[kind].append(_ms(partial(products[kind], x)))
            for kind in KINDS:
                medians[kind][num_rows] = round(statistics.median(taken[kind]), 3)
    return medians


def _ms(work: Callable[[], object]) -> float:
    """What the second of two runs takes: the first one fetches what the other kind has displaced."""
    work()
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000.0


def _packing(kind: str) -> AbstractContextManager[object]:
    """Has what is packed meanwhile be of that kind."""
    return mock.patch.object(native, "prefers_compact", return_value=False) if kind == WHOLE else nullcontext()


def _engine(folder: Path, dtype: str, kind: str) -> Engine:
    """An engine over a forward pass that is compiled here; nothing differs but the products."""
    model = load_model(folder, device=torch.device("cpu"), dtype=dtype)
    with tempfile.TemporaryDirectory() as place, _packing(kind):
        package = Path(place) / "model.pt2"
        ahead.compile_ahead(model, package)
        engine = Engine(model, max_sessions=1, max_context=1024)
        engine.adopt(package)
    return engine


def _show(title: str, found: dict[str, Medians]) -> None:
    kinds = next(iter(found.values()))
    table = new_table(f"{title}: median ms by number of rows, {' / '.join(kinds)}", *found)
    for num_rows in kinds[OWN]:
        cells = [" / ".join(f"{each[kind][num_rows]:.2f}" for kind in kinds) for each in found.values()]
        table.add_row(str(num_rows), *cells)
    default_console().print(table)


if __name__ == "__main__":
    typer.run(main)
