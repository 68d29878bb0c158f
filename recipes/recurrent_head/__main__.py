"""`python -m recipes.recurrent_head RUN` trains heads of each kind, and says what they accept and what a level costs.

RUN is the folder of an `outrider distill --parallel` whose target and draft model are the bundled ones. The heads learn
from its texts, and what they accept of those held out stands beside the draft model's own chain and RUN's mask tokens.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from recipes.distill import draft as drafts
from recipes.distill import written
from recipes.distill.acceptance import CHAIN
from recipes.progress import progress_bars, reporter
from recipes.recurrent_head.drafting import Accepted, accepted, drafted
from recipes.recurrent_head.head import KINDS
from recipes.recurrent_head.price import Price, best, prices
from recipes.recurrent_head.training import NUM_STARTS, Lessons, train

MODELS = Path(__file__).parents[2] / "models"

DRAFT_STEPS = (0.05, 0.3, 0.74)
"""A draft step in target steps: of the wide pair, of the bundled pair's bare passes, and of these in place (issue of
drafters that cost nothing)."""


def by_depth(found: Accepted, num_depths: int) -> Table:
    """The longest rounds of each way: accepted length, and the part that accepted as many guesses."""
    table = Table("drafting", "temperature", "accepted length", *(f"depth {each}" for each in range(1, num_depths + 1)))
    for way, shapes in found.items():
        shape = next(shape for shape in ((1, num_depths - 1), (num_depths, 0)) if shape in shapes)
        for temperature, of in shapes[shape].items():
            table.add_row(way, f"{temperature:g}", f"{of.length:.3f}", *(f"{share:.3f}" for share in of.by_depth))
    return table


def price_table(found: Mapping[str, Price]) -> Table:
    """What levels cost."""
    table = Table("a level of", "multiplications", "of a pass", "processor time of a pass")
    whole = found[CHAIN].num_products
    for way, price in found.items():
        table.add_row(way, f"{price.num_products:,}", f"{price.num_products / whole:.2f}", f"{price.level:.2f}")
    return table


def worth(found: Accepted, found_prices: Mapping[str, Price], temperature: float) -> Table:
    """The best shape of each way, by what a draft step costs."""
    table = Table(f"temperature {temperature:g}", *(f"draft step {each:g}" for each in DRAFT_STEPS))
    for way, shapes in found.items():
        lengths = {shape: of[temperature].length for shape, of in shapes.items()}
        level = found_prices[way].level if way in found_prices else 0.0
        bests = [best(lengths, draft_step, level) for draft_step in DRAFT_STEPS]
        table.add_row(
            way, *(f"{each.speed_up:.3f}: {each.shape[0]} + {each.shape[1]}, {each.length:.2f}" for each in bests)
        )
    return table


def main(
    run: Annotated[Path, typer.Argument(help="Folder of an `outrider distill --parallel` of the bundled pair.")],
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 1000,
    depths: Annotated[int, typer.Option(help="Guesses of a round at most.", min=2)] = 6,
) -> None:
    """Trains heads, measures what they accept, and says what a level costs and what is best."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    console, cpu = Console(), torch.device("cpu")
    folders = (MODELS / "draft", MODELS / "target", run)
    draft, target, parallel = (drafts.load(folder, "float32", cpu).eval().requires_grad_(False) for folder in folders)
    training, held_out = (
        [text for file in sorted((run / "work").glob(f"{name}-*.safetensors")) for text in written.load(file)]
        for name in ("training", "held_out")
    )
    heads = {kind: make(draft.config.get_text_config().hidden_size) for kind, make in KINDS.items()}
    with progress_bars(console) as bars:
        started = time.process_time()
        train(heads, draft, target, Lessons(draft, target, training, depths - 1), steps, reporter(bars, "heads"))
        trained = time.process_time() - started
        found = accepted(held_out, lambda text: drafted(text, heads, draft, parallel, depths), reporter(bars, "after"))
    console.print(f"{trained:.0f} s of processor time in {steps} steps of {NUM_STARTS} places and {depths - 1} levels.")
    console.print(by_depth(found, depths))
    cost = prices(draft, heads, depths)
    console.print(price_table(cost))
    for temperature in sorted({text.temperature for text in held_out}):
        console.print(worth(found, cost, temperature))


if __name__ == "__main__":
    typer.run(main)
