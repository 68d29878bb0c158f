"""Native operators as an older processor has them: those of another level of x86-64, whose code this one runs, too.

`python -m pytest -p tests.engine.older_processor --level "-march=x86-64-v3" FILE` runs tests with them, and
`python -m tests.engine.older_processor "-march=x86-64-v3" FILE` writes what they compute.
"""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from outrider.engine import library, native
from outrider.engine.batch import pack
from outrider.engine.compile.invariance import FUNCTIONS
from outrider.engine.compile.linear import PackedLinear
from outrider.engine.jobs import Job, plan
from outrider.worker.config import WorkerConfig
from tests.engine.histories import random_line

LEVELS = {" ".join(level.flags): level for level in library.LEVELS}
"""By their flags for the compiler, the best one first."""


def older() -> list[str]:
    """The levels of older processors than this one, the best one first."""
    return [flags for flags, level in LEVELS.items() if level.needs <= library._features()][1:]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--level", choices=list(LEVELS), required=True)


def pytest_configure(config: pytest.Config) -> None:
    become(config.getoption("level"))


def become(flags: str) -> None:
    """From now on this process is on a processor of that level; its library is built if nobody has built it before."""
    level, cache = LEVELS[flags], WorkerConfig.model_fields["compile_cache"].get_default(call_default_factory=True)
    cache.mkdir(parents=True, exist_ok=True)
    library.BUILT_BEFOREHAND = cache / "levels"
    library._features = lambda: level.needs
    assert [*library.build_beforehand([level])] == [library.find(cache)]


def results() -> dict[str, Tensor]:
    """What has the same bits on every processor: all that is computed in float32, and products with bytes."""
    from tests.engine import test_eight_bits, test_linear, test_native, test_rows  # they import nothing that is loaded

    found: dict[str, Tensor] = {}
    plain = test_linear.layer(386, 200, torch.float32, bias=True)
    for kind, layer in {"float32": plain, "bytes": test_eight_bits.kept(plain)}.items():
        packed = PackedLinear(layer)
        for num_rows in (1, 3, 7, 40):
            found[f"{kind}, {num_rows} rows"] = packed(test_linear.noise(num_rows, 386, dtype=torch.float32))
    gate, up, down = (test_linear.layer(*sizes, torch.float32) for sizes in ((386, 96), (386, 96), (96, 50)))
    weights = [each for layer in (gate, up) for each in (PackedLinear(layer).panels, None)]
    found["gated"] = torch.ops.outrider_native.gated_linear(
        test_linear.noise(9, 386, dtype=torch.float32) / 20, *weights, 96, PackedLinear(down).panels, None, 50
    )
    for options in ({}, {"window": 9, "softcap": 3.0, "sinks": True}):
        rig = test_native.Layer(**options)
        slot, line = test_native.held(rig.pool, 150, 1)
        jobs = [test_native.branches(slot, line, 11), Job(rig.pool.acquire(), random_line(45, seed=3))]
        batch = pack([plan(job, max_tokens=512) for job in jobs])
        found[f"attention {options}"] = rig.native(batch, rig.inputs(len(batch.token_ids)))
    numbers = test_rows.noise(7, 1003, scale=5.0)
    for index in range(len(FUNCTIONS)):
        found[f"function {index}"] = test_rows.elementwise(numbers, index)
    for power in (1, 2):
        found[f"mean of power {power}"] = test_rows.row_mean(numbers, power)
    return found


if __name__ == "__main__":
    become(sys.argv[1])
    native.load(library.BUILT_BEFOREHAND)
    save_file(results(), sys.argv[2])
