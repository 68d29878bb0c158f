"""Chains of mask tokens below leaves of a tree: what one pass says of them, and that no slot ever holds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.load.mask_token import mask_token_id
from tests.engine.histories import Rig, random_line
from tests.engine.tiny_models import VOCAB_SIZE

MASK = VOCAB_SIZE - 1
LINE = [token_id % MASK for token_id in random_line(20, seed=3)]

# The line's end +- 3 - 4       and below it, 4 and 5 three mask tokens each
#                +- 5
PARENTS = [LINE_END, 0, LINE_END, LINE_END, 3, 4, 1, 6, 7, 2, 9, 10]
TOKEN_IDS = [3, 4, 5, *[MASK] * 9]
NUM_MASKS = 9
WANTED = [LINE_END, 1, 2, *range(3, 12)]
PATHS = [[], [3, 4], [5]]


def job(rig: Rig) -> Job:
    return Job(rig.engine.acquire(), LINE, PARENTS, TOKEN_IDS, WANTED, NUM_MASKS)


def check(rig: Rig) -> None:
    """Two passes, of which the second finds the nodes held."""
    passes = job(rig)
    for _ in range(2):
        logits = rig.engine.step([passes]).logits
        for index, path in enumerate(PATHS):
            expected = rig.reference([*LINE, *path, MASK, MASK, MASK])[-4:]
            rig.close(logits[index], expected[0])
            rig.close(logits[3 + 3 * index : 6 + 3 * index], expected[1:])
        assert [cell.token_id for cell in passes.slot.cells.values()] == [3, 4, 5]


@pytest.mark.parametrize("family", ["qwen3", "llama", "mistral", "gpt2"])
def test_each_chain_sees_the_path_of_its_leaf_and_the_masks_above(family: str) -> None:
    check(Rig(family))


@pytest.mark.usefixtures("native_operators")
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_the_native_graph_says_the_same(family: str) -> None:
    rig = Rig(family)
    rig.engine.export()
    check(rig)


def test_what_follows_takes_the_cells_of_the_masks() -> None:
    rig = Rig("llama")
    slot = rig.engine.acquire()
    line = list(LINE)
    rig.engine.step([Job(slot, line, PARENTS, TOKEN_IDS, WANTED, NUM_MASKS)])
    held = slot.end_cell
    line += [3, 4, 9, MASK]  # the target may choose what the draft model takes for its mask
    logits = rig.engine.step([Job(slot, line, [LINE_END, 0], [7, 8], [LINE_END, 1])]).logits
    expected = rig.reference([*line, 7, 8])
    rig.close(logits[0], expected[-3])
    rig.close(logits[1], expected[-1])
    assert held == len(LINE) + 3
    assert slot.end_cell == len(line) + 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"pard_token": 60}', 60),
        ('{"ptd_token_id": 59}', 59),
        ('{"mask_token_id": 4, "pard_token": 60}', 60),
        ('{"pard_token": null}', None),
        ("{}", None),
    ],
)
def test_the_config_names_the_mask_token(tmp_path: Path, content: str, expected: int | None) -> None:
    (tmp_path / "config.json").write_text(content)
    assert mask_token_id(tmp_path, VOCAB_SIZE) == expected


@pytest.mark.parametrize("value", ["61", "-1", "true", "60.0", '"60"', "[60]"])
def test_what_is_no_token_id_of_the_model_is_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"pard_token": {value}}}')
    with pytest.raises(UnsupportedModelError, match="--parallel off"):
        mask_token_id(tmp_path, VOCAB_SIZE)
