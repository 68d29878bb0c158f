"""The choice of tokens as the end of a captured step, so that a replay chooses."""

from __future__ import annotations

import torch
from torch import Tensor

from outrider.core.protocol.validation import TREE_WIDTH_MAX
from outrider.engine.attention.tree import TreeStep
from outrider.engine.batch import CAPTURED_TOKENS_MAX
from outrider.engine.gpu.work_list import ROW_CHOICES, ROW_POSITIONS, ROW_SLOTS
from outrider.engine.sampling_tables import SamplingTables


class ChoiceInGraph:
    """What the kernels of `outrider/engine/gpu/choice.py` read, and where they write, which never changes.

    Whose rows there are and how many tokens are wanted of each stands in the work list, how they are chosen in the
    sampling tables.
    """

    def __init__(self, tables: SamplingTables) -> None:
        self._tables = tables
        self._chosen = torch.zeros(
            2 * CAPTURED_TOKENS_MAX * TREE_WIDTH_MAX, dtype=torch.float64, device=tables.seeds.device
        )

    def best(self, num_rows: int) -> Tensor:
        """[2, num_rows, TREE_WIDTH_MAX] float64: token ids, and perturbed scores, of a step over that many tokens; see
        `best_tokens`. The next step writes to the same place."""
        return self._chosen[: 2 * num_rows * TREE_WIDTH_MAX].view(2, num_rows, TREE_WIDTH_MAX)

    def choose(self, logits: Tensor, step: TreeStep) -> None:
        """Chooses from the logits of all rows of a captured step, [N, V]. It is captured with them."""
        from outrider.engine.gpu import choice  # it wants Triton

        slots, positions, widths = map(step.work.row, (ROW_SLOTS, ROW_POSITIONS, ROW_CHOICES))
        rows = choice.Rows(slots, positions, widths, self._tables.vocab_sizes)
        choice.choose(logits, self._tables.shaping, self._tables.seeds, rows, self.best(len(logits)))
