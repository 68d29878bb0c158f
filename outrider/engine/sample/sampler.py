"""Choosing tokens from logits: the rows of many sessions at once, each by its own sampling parameters.

A token is `argmax_v(processed_logit[v] / T + G(seed, position, v))` with the noise of `noise.py`; at temperature 0 it
is the argmax of the processed logits. Processing, in this order: what a grammar allows (`allowed.py`), bias, repetition
penalty (Keskar et al. 2019, CTRL), frequency and presence penalties (as OpenAI defines them), temperature, top-k,
top-p, min-p, each filter on what the one before it left. That is the definition, and `candidates.py` does it. Top-k is
in fact taken before the temperature, which changes no order: only its survivors need to be scaled, sorted and given
noise. Without top-k nothing is sorted: the token that noise prefers is found first, and then asked whether top-p keeps
it (`unranked.py`).

Ties: of equal logits the one with the lowest token id ranks first, on every device. Top-k therefore keeps exactly k
tokens, and top-p drops the highest ids among equals.

Everything up to the penalties is float32. From the temperature on it is float64: no float32 temperature overflows it,
and sums over a row round so finely that which rows share a batch does not decide what top-p keeps.

A CPU worker that compiles does all of it in one native pass over each row (`native/sampling.cpp`), after bias and
penalties, and a GPU that has Triton in one kernel (`fused.py`). Where a sum of probabilities is so close to top_p that
rounding may decide, the definition is asked.

A row with a NaN among its logits raises nothing: it chooses some token id of the vocabulary, and what it proposes means
nothing. Whoever feeds the sampler looks at the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from outrider.core.protocol.messages import TokenLogprobs
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.validation import TREE_WIDTH_MAX
from outrider.engine import native
from outrider.engine.sample import fused
from outrider.engine.sample.allowed import Allowed
from outrider.engine.sample.best import Best, Pending
from outrider.engine.sample.candidates import candidates, shaping_of
from outrider.engine.sample.logit_bias import LogitBias
from outrider.engine.sample.native import best_of
from outrider.engine.sample.noise import as_int64
from outrider.engine.sample.penalties import Penalties
from outrider.engine.sample.processor import LogitsProcessor, Row
from outrider.engine.sample.ranking import ranked
from outrider.engine.sample.unranked import best_unranked
from outrider.engine.sampling_tables import SamplingTables
from outrider.engine.transfer import Fetched, tensor_on

ONE_PASS_TEMPERATURE_MIN = 1e-30
"""Lowest temperature above 0 for which one pass chooses: its inverse times a logit is still a float32."""

_PROPOSED_MIN = 2
"""The margin of a row's first token is by how much it is above the second."""

OnePass = Callable[[Tensor, Tensor, Tensor, Sequence[int], Sequence[int], int], Pending]
"""`outrider.engine.sample.native.best_of`, or what chooses the same elsewhere."""


class Sampler:
    """Holds the sampling parameters, and for penalties the token counts, of the sessions in its slots.

    Slots are integers below `max_sessions`. The token ids, slots and parameters that come in are trusted: the caller
    has validated them. Not thread-safe.
    """

    def __init__(
        self,
        vocab_size: int,
        max_sessions: int,
        device: torch.device,
        processors: Sequence[LogitsProcessor] = (),
        tables: SamplingTables | None = None,
    ) -> None:
        """`processors` run after logit bias and penalties. `tables` are those of an engine whose steps may choose."""
        self._vocab_size = vocab_size
        self._device = device
        self._processors: list[LogitsProcessor] = [
            LogitBias(device),
            Penalties(vocab_size, max_sessions, device),
            *processors,
        ]
        self._params: dict[int, SamplingParams] = {}
        self._taking_part: dict[int, list[LogitsProcessor]] = {}
        """Of each slot whose processed logits differ from the raw ones: the processors that change them."""
        self._for_one_pass: set[int] = set()
        """Slots for which one pass may choose."""
        self._tables = tables or SamplingTables.of(max_sessions, device)
        self._shaping, self._seeds, self._vocab_sizes = self._tables

    def open(
        self,
        slot: int,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        output_token_ids: Sequence[int],
        vocab_size: int | None = None,
    ) -> None:
        """Gives `slot` to a session whose committed line is the prompt and the output so far.

        A step of the engine chooses none of its tokens from `vocab_size` on.
        """
        self.close(slot)
        self._params[slot] = params
        taking_part = [
            processor
            for processor in self._processors
            if processor.open(slot, params, prompt_token_ids, output_token_ids)
        ]
        if taking_part:
            self._taking_part[slot] = taking_part
        if params.greedy or params.temperature >= ONE_PASS_TEMPERATURE_MIN:
            self._for_one_pass.add(slot)
        self._seeds[slot] = as_int64(params.seed)
        self._vocab_sizes[slot] = self._vocab_size if vocab_size is None else vocab_size
        self._shaping[:, slot] = self._tensor(shaping_of(params, self._vocab_size), torch.float64)

    def commit(self, slot: int, token_ids: Sequence[int]) -> None:
        """Adds committed output to the session's line. Costs nothing unless a processor takes part in the session."""
        if token_ids:
            for processor in self._taking_part.get(slot, ()):
                processor.commit(slot, token_ids)

    def close(self, slot: int) -> None:
        """Forgets the session in `slot`; closing an empty slot changes nothing."""
        self._params.pop(slot, None)
        self._for_one_pass.discard(slot)
        for processor in self._taking_part.pop(slot, ()):
            processor.close(slot)

    def choose(
        self, logits: Tensor, rows: Sequence[Row], allowed: Allowed | None = None, best: Tensor | None = None
    ) -> list[int]:
        """The token of each row; `logits` [R, V] of any float type belong to `rows`, one each.

        Rows of `allowed` choose among those tokens, and 0 where there are none. `best` is what the step that made the
        logits chose already (`StepOutput.best`), as many tokens as `num_choices` said.
        """
        return self.begin_choice(logits, rows, allowed, best)()

    def begin_choice(
        self, logits: Tensor, rows: Sequence[Row], allowed: Allowed | None = None, best: Tensor | None = None
    ) -> Callable[[], list[int]]:
        """Queues a choice. What it returns waits for that, and says what `choose` does; until then the logits and the
        rows' slots stay as they are.

        It waits here where more than one pass is needed, or where no kernel chooses in one.
        """
        if best is None and allowed is None and not native.available(self._device):
            slots = [row.slot for row in rows]
            if self._taking_part.keys().isdisjoint(slots) and all(self._params[slot].greedy for slot in slots):
                chosen = Fetched(logits.argmax(-1))
                return lambda: chosen.wait().tolist()
        begun = self._begin(logits, rows, 1, allowed, best)
        return lambda: [each.token_ids[0] if each.token_ids else 0 for each in begun()]

    def propose(
        self,
        logits: Tensor,
        rows: Sequence[Row],
        width: int,
        allowed: Allowed | None = None,
        best: Tensor | None = None,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """The `width` tokens of each row that the choice prefers, best first: the first is what `choose` takes.

        With them their *margins*, in units of processed logit / T: by how much the perturbed score of each is below the
        first one's, and for the first by how much it is above the second one's, infinite if there is none. Another
        model chooses alike, with the same noise, unless its scores differ by more than that. A row whose filters leave
        fewer than `width` tokens proposes those, as does one of `allowed`. For `best` see `choose`.
        """
        if not rows:
            return [], []
        found = self._begin(logits, rows, max(width, _PROPOSED_MIN), allowed, best)()
        return [each.token_ids[:width] for each in found], [each.margins[:width] for each in found]

    def tables(self, slots: Sequence[int]) -> SamplingTables | None:
        """By which one pass over raw logits chooses for these slots; None if that is not enough for all of them."""
        if self._one_pass(slots, TREE_WIDTH_MAX) is None or not self._taking_part.keys().isdisjoint(slots):
            return None
        return self._tables

    def num_choices(self, slots: Sequence[int], num_proposed: int = 0) -> int:
        """How many tokens of each of their rows a step should choose by itself, for `choose` or for a `propose` of that
        width: none if that takes more than raw logits."""
        if native.available(self._device) or self.tables(slots) is None:
            return 0
        return max(num_proposed, _PROPOSED_MIN) if num_proposed else 1

    def logprobs(self, logits: Tensor, token_ids: Sequence[int], num_top: int) -> tuple[TokenLogprobs, ...]:
        """Log-probabilities of `token_ids`, one for each row of the unprocessed `logits` [R, V], and of the `num_top`
        most likely tokens beside it, best first."""
        logits = logits.float()
        top_logits, top_ids = ranked(logits, min(num_top, logits.shape[-1]))
        own_logits = logits.gather(-1, self._tensor(token_ids, torch.int64)[:, None])
        log_probs = torch.cat((own_logits, top_logits), -1) - logits.logsumexp(-1, keepdim=True)
        table = torch.cat((log_probs.double(), top_ids.double()), -1).tolist()
        num_values = log_probs.shape[-1]
        return tuple(
            TokenLogprobs(row[0], tuple(int(token_id) for token_id in row[num_values:]), tuple(row[1:num_values]))
            for row in table
        )

    def _begin(
        self, logits: Tensor, rows: Sequence[Row], width: int, allowed: Allowed | None, best: Tensor | None
    ) -> Callable[[], list[Best]]:
        """Begins to find the `width` best tokens of each row, or to fetch what the step chose."""
        slots = [row.slot for row in rows]
        if allowed is not None:
            logits = logits.to(torch.float32, copy=True)
            allowed.forbid_others(logits)
        if not self._taking_part.keys().isdisjoint(slots):
            logits = self._processed(logits, rows)
        pending: Pending | None = None
        if best is not None:
            pending = fused.fetch(best)
        elif one_pass := self._one_pass(slots, width):
            positions = [row.position for row in rows]
            pending = one_pass(logits, self._shaping, self._seeds, slots, positions, width)
        if pending is not None:
            return lambda: self._complete(pending(), logits, rows, width)
        found: list[Best | None] = [None] * len(rows)
        if unranked := [index for index, slot in enumerate(slots) if self._is_unranked(self._params[slot])]:
            some = self._described(logits, rows, unranked)
            for index, each in zip(unranked, best_unranked(*some, width), strict=True):
                found[index] = each
        complete = self._complete(found, logits, rows, width)
        return lambda: complete

    def _complete(self, found: list[Best | None], logits: Tensor, rows: Sequence[Row], width: int) -> list[Best]:
        """`found`, and what the definition says of the rows for which that is None."""
        if None in found:
            left = [index for index, each in enumerate(found) if each is None]
            some = self._described(logits, rows, left)
            for index, each in zip(left, candidates(*some, width).best(width), strict=True):
                found[index] = each
        return [each for each in found if each]

    def _is_unranked(self, params: SamplingParams) -> bool:
        """Whether nothing is asked for that takes a ranking: what is greedy or has a top-k ranks a few tokens only."""
        return not params.greedy and not 0 < params.top_k < self._vocab_size

    def _described(
        self, logits: Tensor, rows: Sequence[Row], indices: Sequence[int]
    ) -> tuple[Tensor, list[SamplingParams], Tensor, Tensor, Tensor]:
        """Of the rows at `indices` what `candidates` takes: logits, parameters, shaping, seeds and positions."""
        some = [rows[index] for index in indices]
        slots, positions = self._tensor([[row.slot for row in some], [row.position for row in some]], torch.int64)
        if len(indices) < len(rows):
            logits = logits.index_select(0, self._tensor(indices, torch.int64))
        params = [self._params[row.slot] for row in some]
        return logits.float(), params, self._shaping[:, slots], self._seeds[slots], positions

    def _one_pass(self, slots: Sequence[int], width: int) -> OnePass | None:
        """What can choose in one pass for rows of these slots; None if nothing can."""
        if not self._for_one_pass.issuperset(slots):
            return None
        if native.available(self._device):
            return best_of
        return None if width > fused.WIDTH_MAX or fused.problem(self._device) else fused.best_of

    def _processed(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """Logits [R, V] in float32 after all processors; the logits themselves stay as they are."""
        changing = [index for index, row in enumerate(rows) if row.slot in self._taking_part]
        processed = logits.to(torch.float32, copy=bool(changing))
        for processor in self._processors if changing else ():
            indices = [index for index in changing if processor in self._taking_part[rows[index].slot]]
            if indices:
                processor.process(processed, indices, [rows[index] for index in indices])
        return processed

    def _tensor(self, values: Sequence[object], dtype: torch.dtype) -> Tensor:
        return tensor_on(self._device, values, dtype)
