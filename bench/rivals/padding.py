"""Padded speculation, for comparison: all rounds of a step are made as long as the longest, and attend as far.

That is what a batch costs that is a rectangle of sessions times tokens, the baseline of EMS-SD (arXiv 2405.07542):
sessions that score fewer drafts are filled up with tokens that are thrown away, and every session's attention runs over
as many cells as that of the longest line. It is treated kindly: prompts are not padded but read as ever, padding brings
no logits, and what rejected drafts leave in a rectangular cache does not add up from round to round. Where a GPU's
kernel reads keys and values block by block, only inputs are padded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outrider.engine.attention.interface import LayerCall
from outrider.engine.attention.native import NativeAttention, NativeStep
from outrider.engine.batch import PackedBatch, SessionSpan
from outrider.engine.compile.forward import Forward
from outrider.engine.model import RaggedModel


def rounds(batch: PackedBatch) -> list[int]:
    """Indices of the sessions that decode or verify: of their lines they feed the last token alone."""
    return [index for index, session in enumerate(batch.sessions) if _num_line_tokens(batch, session) == 1]


def _num_line_tokens(batch: PackedBatch, session: SessionSpan) -> int:
    offsets = batch.path_offsets
    return sum(offsets[token] == offsets[token + 1] for token in range(session.first_token, session.end_token))


def pad_inputs(batch: PackedBatch, scratch_cell: int) -> int:
    """Adds what the rounds of `batch` lack to be as long as the longest of them. Returns how many tokens those are.

    They stand together behind all others, and see as much as the longest line holds.
    """
    sessions = [batch.sessions[index] for index in rounds(batch)]
    if not sessions:
        return 0
    lengths = [session.end_token - session.first_token for session in sessions]
    num_missing = len(lengths) * max(lengths) - sum(lengths)
    if num_missing:
        longest = max(sessions, key=lambda session: session.num_cells)
        first = len(batch.token_ids)
        batch.token_ids += [0] * num_missing
        batch.positions += [longest.num_cells - 1] * num_missing
        batch.write_cells += [scratch_cell] * num_missing
        batch.limits += [longest.num_cells] * num_missing
        batch.path_offsets += [batch.path_offsets[-1]] * num_missing
        batch.sessions.append(longest._replace(first_token=first, end_token=first + num_missing))
    return num_missing


def pad_caches(batch: PackedBatch) -> None:
    """Gives every round as many cells as the longest has, where attention goes over all cells and masks what is not
    seen. The cells that a session lacks are the longest's own."""
    indices = rounds(batch)
    if not indices:
        return
    longest = max((batch.sessions[index] for index in indices), key=lambda session: session.num_cells)
    num_blocks = -(-longest.num_cells // batch.block_cells)
    for index in indices:
        session = batch.sessions[index]
        num_own = -(-session.num_cells // batch.block_cells)
        first_block = len(batch.blocks)
        batch.blocks += batch.blocks[session.first_block : session.first_block + num_own]
        batch.blocks += batch.blocks[longest.first_block + num_own : longest.first_block + num_blocks]
        batch.sessions[index] = session._replace(first_block=first_block, num_cells=longest.num_cells)


def missing_attention(batch: PackedBatch, scratch_cell: int) -> PackedBatch:
    """What attention over the longest line would do beyond what the rounds of `batch` do: each token of a shorter
    session sees as many cells as its session lacks. Maybe without any token."""
    missing = PackedBatch(block_cells=batch.block_cells)
    sessions = [batch.sessions[index] for index in rounds(batch)]
    if not sessions:
        return missing
    longest = max(sessions, key=lambda session: session.num_cells)
    num_blocks = -(-longest.num_cells // batch.block_cells)
    missing.blocks = batch.blocks[longest.first_block : longest.first_block + num_blocks]
    for session in sessions:
        num_cells, num_tokens = longest.num_cells - session.num_cells, session.end_token - session.first_token
        if num_cells:
            first = len(missing.limits)
            missing.limits += [num_cells] * num_tokens
            missing.sessions.append(SessionSpan(first, first + num_tokens, 0, num_cells))
    num_tokens = len(missing.limits)
    missing.token_ids = [0] * num_tokens
    missing.positions = [0] * num_tokens
    missing.write_cells = [scratch_cell] * num_tokens
    missing.path_offsets = [0] * (num_tokens + 1)
    return missing


class Padding:
    """A `Forward` that pads what a model's other passes compute. Device thread only."""

    path = "padded"

    def __init__(self, model: RaggedModel) -> None:
        self._model = model
        self._passes: Sequence[Forward] = ()
        """Those that compute while it is in use."""
        self._queries: dict[tuple[int, int], Tensor] = {}
        self.num_tokens = 0
        """How many tokens the last pass was padded with."""

    def use(self, pads: bool) -> None:
        """From now on the model's passes are padded, or are not."""
        is_in_use = self in self._model.forwards
        if pads and not is_in_use:
            self._passes, self._model.forwards = self._model.forwards, [self]
        elif is_in_use and not pads:
            self._model.forwards = [*self._passes]
            self.num_tokens = 0

    def run(self, batch: PackedBatch) -> Tensor | None:
        """See `Forward`."""
        scratch_cell = self._model.cache.scratch_cell
        if isinstance(self._model.attention, NativeAttention):
            # It reads what a token sees and no more, so the rest is done beside the pass.
            self.attend(self._model.attention, missing_attention(batch, scratch_cell))
        else:
            pad_caches(batch)
        self.num_tokens = pad_inputs(batch, scratch_cell)
        return next(logits for each in self._passes if (logits := each.run(batch)) is not None)

    def attend(self, attention: NativeAttention, batch: PackedBatch) -> None:
        """Does what `attention` over `batch` costs, and uses nothing of it."""
        num_tokens = len(batch.limits)
        if not num_tokens:
            return
        step = NativeStep(attention.described(batch))
        num_heads = self._model.decoder.model.config.get_text_config().num_attention_heads
        for layer, facts in enumerate(self._model.facts.layers):
            step.attend(
                self._zeros(num_heads, num_tokens, facts.key_size),
                self._zeros(facts.num_kv_heads, num_tokens, facts.key_size),
                self._zeros(facts.num_kv_heads, num_tokens, facts.value_size),
                LayerCall(layer, scale=1.0),
            )

    def _zeros(self, num_heads: int, num_tokens: int, size: int) -> Tensor:
        """[num_heads, num_tokens, size]"""
        held = self._queries.get((num_heads, size))
        if held is None or held.shape[1] < num_tokens:
            held = torch.zeros(num_heads, 2 * num_tokens, size, dtype=self._model.facts.dtype)
            self._queries[num_heads, size] = held
        return held[:, :num_tokens]
