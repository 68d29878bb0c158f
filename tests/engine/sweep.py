"""Every architecture beside transformers, by every forward pass that a worker on a CPU has.

`python -m tests.engine.sweep [NAME ...]` compiles each in each type of numbers, a minute and more for both, and prints
a table; with `--uncompiled` it takes a few seconds each. It exits with 1 if one is computed wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from torch import Tensor

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine import native
from outrider.engine.compile.ahead import compile_ahead
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.load import self_check
from outrider.engine.load.folder import load_model
from outrider.engine.load.positions import check_positions
from outrider.engine.load.probe import probe_layers
from outrider.worker.config import default_compile_cache
from tests.engine.architectures import ARCHITECTURES, save

CPU = torch.device("cpu")
CONTEXT = 256
LENGTHS = (5, 9, 17, 40, 100, 200)
"""Of the lines: below, at and past the windows, and within one step together."""
NUM_NODES = 4
"""Of each line's last tokens, that are a branch of drafts; another branch begins beside them."""

DTYPES = ("float32", "bfloat16")
PASSES = ("eager", "native", "compiled")
"""Operator by operator on torch's, the graph of native operators, and that graph compiled."""

FLOAT32_ERROR_MAX = 1e-3
"""Relative to the largest logit."""
BFLOAT16_ERRORS_MAX = 2.0
"""How many times as far from transformers in float32 as transformers in bfloat16 is."""
BFLOAT16_ERROR_MIN = 5e-3
"""And as much is no fault where transformers happens to be close."""


class Outcome(NamedTuple):
    """What one forward pass came to."""

    error: float
    right: bool
    batch_invariant: bool
    logits: Tensor


def lines(vocab_size: int) -> list[list[int]]:
    """Token ids of each length."""
    chance = torch.Generator().manual_seed(1)
    return [torch.randint(1, min(vocab_size, 90), (length,), generator=chance).tolist() for length in LENGTHS]


def by_transformers(folder: Path, dtype: str) -> Tensor:
    """What transformers makes of the last NUM_NODES + 1 tokens of each line, [R, V] in float32."""
    model = load_model(folder, device=CPU, dtype=dtype)
    rows: list[Tensor] = []
    with torch.inference_mode():
        for line in lines(model.config.get_text_config().vocab_size):
            logits = model(input_ids=torch.tensor([line]), use_cache=False).logits[0]
            rows.append(logits[-1 - NUM_NODES :].float())
    return torch.cat(rows)


def by_engine(engine: Engine) -> Tensor:
    """What the engine makes of them, read one by one. Raises AssertionError if it promises the same bits in company
    and they differ."""
    alone = torch.cat([_run(engine, [line]) for line in lines(engine.vocab_size)])
    together = _run(engine, lines(engine.vocab_size))
    assert not engine.batch_invariant or torch.equal(alone, together), "company changes bits"
    return alone


def _run(engine: Engine, texts: Sequence[list[int]]) -> Tensor:
    slots = [engine.acquire(shares=False) for _ in texts]
    jobs: list[Job] = []
    for slot, text in zip(slots, texts, strict=True):
        line, branch = text[:-NUM_NODES], text[-NUM_NODES:]
        parents = [*range(LINE_END, NUM_NODES - 1), LINE_END]
        jobs.append(Job(slot, line, parents, [*branch, 3], wanted=range(LINE_END, NUM_NODES)))
    engine.step([Job(job.slot, job.line[: len(job.line) // 2]) for job in jobs if len(job.line) > 1])
    found = engine.step(jobs).logits.float()
    for slot in slots:
        engine.release(slot)
    return found


def errors(logits: Tensor, truth: Tensor) -> Tensor:
    """Each row's largest difference, relative to the largest logit, [R]."""
    return (logits - truth).abs().amax(-1) / truth.abs().max()


class Sweep:
    """One architecture in one type of numbers."""

    def __init__(self, folder: Path, dtype: str) -> None:
        """`folder` is one of `architectures.save`. Raises UnsupportedModelError as a worker does at its start."""
        self._folder, self._dtype = folder, dtype
        self.truth = by_transformers(folder, "float32")
        self.limit = FLOAT32_ERROR_MAX
        if dtype != "float32":
            own = self._error(by_transformers(folder, dtype))
            self.limit = max(BFLOAT16_ERRORS_MAX * own, BFLOAT16_ERROR_MIN)
        model = load_model(folder, device=CPU, dtype=dtype)
        check_positions(model)
        self._passages = self_check.reference(model, probe_layers(model), CONTEXT)
        self._engine = Engine(model, max_sessions=len(LENGTHS), max_context=CONTEXT, attention="torch")

    def eager(self) -> Outcome:
        """Operator by operator on torch's."""
        return self._outcome()

    def native(self) -> Outcome:
        """By the graph. Raises UnsupportedModelError if the model cannot be exported."""
        self._engine.export()
        return self._outcome()

    def compiled(self, folder: Path) -> Outcome:
        """By that graph compiled into `folder`. Raises UnsupportedModelError if that cannot be."""
        package = folder / "model.pt2"
        compile_ahead(load_model(self._folder, device=CPU, dtype=self._dtype), package)
        self._engine.adopt(package)
        return self._outcome()

    def _outcome(self) -> Outcome:
        try:
            self_check.check(self._engine, self._passages)
        except UnsupportedModelError as error:
            raise AssertionError(str(error)) from error
        logits = by_engine(self._engine)
        error = self._error(logits)
        return Outcome(error, error <= self.limit, self._engine.batch_invariant, logits)

    def _error(self, logits: Tensor) -> float:
        """Of the worst row, or of the median one: in 16 bits a rounding may send a token to another expert."""
        found = errors(logits, self.truth)
        return (found.max() if self._dtype == "float32" else found.median()).item()


def rows(names: Iterable[str], *, compiles: bool) -> Iterator[tuple[list[str], bool]]:
    """The cells of each row of the table, and whether all is right."""
    for name in names:
        for dtype in DTYPES:
            with tempfile.TemporaryDirectory() as temporary:
                yield _row(name, dtype, Path(temporary), compiles=compiles)


def _row(name: str, dtype: str, temporary: Path, *, compiles: bool) -> tuple[list[str], bool]:
    try:
        sweep = Sweep(save(name, temporary / "model"), dtype)
    except UnsupportedModelError as error:
        return [name, dtype, f"refused: {error}", *[""] * (1 + len(PASSES))], True
    passes = [sweep.eager, sweep.native, *([partial(sweep.compiled, temporary)] if compiles else [])]
    cells, right, outcomes = list[str](), True, list[Outcome]()
    for run in passes:
        try:
            outcome = run()
        except UnsupportedModelError as error:  # the worker goes on with the pass before
            cells.append(str(error))
            break
        except AssertionError as error:
            return [name, dtype, f"{sweep.limit:.0e}", *cells, f"WRONG: {error}"], False
        wrong = "" if outcome.right else "WRONG: "
        if outcome.batch_invariant and outcomes and outcomes[-1].batch_invariant:
            wrong = wrong or ("" if torch.equal(outcome.logits, outcomes[-1].logits) else "WRONG, other bits: ")
        right = right and not wrong
        outcomes.append(outcome)
        cells.append(f"{wrong}{outcome.error:.0e}")
    cells += [""] * (len(PASSES) - len(cells))
    invariant = "yes" if outcomes and outcomes[-1].batch_invariant else "no"
    return [name, dtype, f"{sweep.limit:.0e}", *cells, invariant], right


def main(arguments: Sequence[str]) -> int:
    """Prints the table; returns the exit status."""
    names = "; ".join(ARCHITECTURES)
    parser = argparse.ArgumentParser(prog="python -m tests.engine.sweep", epilog=f"NAMEs: {names}")
    parser.add_argument("names", nargs="*", metavar="NAME", help="architectures; all of them if none is named")
    parser.add_argument("--uncompiled", action="store_true", help="without the compiled pass")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(ARCHITECTURES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; see --help")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)  # on models this small threads wait for one another
    native.load(default_compile_cache())
    print("| architecture | numbers | may be off by |", *(f"{way} |" for way in PASSES), "batch invariant |")
    print("|---" * (3 + len(PASSES) + 1) + "|")
    status = 0
    for cells, right in rows(options.names or ARCHITECTURES, compiles=not options.uncompiled):
        print("|", " | ".join(cells), "|", flush=True)
        status |= not right
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
