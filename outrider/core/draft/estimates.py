"""What one drafter has learned about its device and its guesses: the prior of each session."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from outrider.core.draft.lattice import Proposals
from outrider.core.estimate.calibration import Calibration
from outrider.core.estimate.confidence import DRAFT_PROBABILITIES, margin_bin
from outrider.core.estimate.foresight import Foresight, discounted
from outrider.core.estimate.step_curve import StepCurve


class DraftEstimates:
    """The time of steps, how often guesses are right, and how far a parallel draft model sees."""

    def __init__(
        self,
        probabilities: Sequence[float] = DRAFT_PROBABILITIES,
        confidence_bin: Callable[[int, float], int] = margin_bin,
        *,
        num_positions: int = 1,
    ) -> None:
        """`confidence_bin` sorts a guess by its rank among its siblings, 0 the first, and by its proposer's confidence
        in it; `probabilities` are how often guesses of each bin are right at first. As they stand, a draft model's.

        A pass proposes for up to `num_positions` places below a node, from 1 to POSITIONS_MAX; above 1 the draft model
        is a parallel one, and guesses are told apart by the mask tokens before them as well.
        """
        self.curve = StepCurve()
        self.num_positions = num_positions
        self._num_bins = len(probabilities)
        self._confidence_bin = confidence_bin
        cells = discounted(probabilities, num_positions)
        self._greedy, self._sampled = Calibration(cells), Calibration(cells)
        self._foresight = {greedy: Foresight(num_positions) for greedy in (True, False)}

    def calibration(self, *, greedy: bool) -> Calibration:
        """What guesses are worth in greedy sessions, or in the others."""
        return self._greedy if greedy else self._sampled

    def foresight(self, *, greedy: bool) -> Foresight:
        """How far the passes of greedy sessions, or of the others, see ahead."""
        return self._foresight[greedy]

    def binned(self, token_ids: Sequence[int], confidences: Sequence[float], mask_depth: int = 0) -> Proposals:
        """Proposals with their bins, best first. So many mask tokens stood before them."""
        first, confidence_bin = mask_depth * self._num_bins, self._confidence_bin
        return [(token_id, first + confidence_bin(rank, confidences[rank])) for rank, token_id in enumerate(token_ids)]
