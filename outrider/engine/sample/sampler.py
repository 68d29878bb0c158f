"""Choosing tokens from logits: the rows of many sessions at once, each by its own sampling parameters.

A token is `argmax_v(processed_logit[v] / T + G(seed, position, v))` with the noise of `noise.py`; at temperature 0 it
is the argmax of the processed logits. Processing, in this order: bias, repetition penalty (Keskar et al. 2019, CTRL),
frequency and presence penalties (as OpenAI defines them), temperature, top-k, top-p, min-p, each filter on what the one
before it left. Top-k is in fact taken before the temperature, which changes no order: only its survivors need to be
scaled, sorted and given noise.

Ties: of equal logits the one with the lowest token id ranks first, on every device. Top-k therefore keeps exactly k
tokens, and top-p drops the highest ids among equals.

Everything up to the penalties is float32. From the temperature on it is float64: no float32 temperature overflows it,
and sums over a row round so finely that which rows share a batch does not decide what top-p keeps.

A CPU worker that compiles does all of it in one native pass over each row (`native/sampling.cpp`), after bias and
penalties.

A row with a NaN among its logits raises nothing: it chooses some token id of the vocabulary, and what it proposes means
nothing. Whoever feeds the sampler looks at the logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from outrider.core.protocol.messages import TokenLogprobs
from outrider.core.protocol.sampling import SamplingParams
from outrider.engine import native
from outrider.engine.sample.native import best_of
from outrider.engine.sample.noise import as_int64, gumbel

NATIVE_TEMPERATURE_MIN = 1e-30
"""Lowest temperature above 0 for which the native operators choose: its inverse times a logit is still a float32."""


class Row(NamedTuple):
    """The place of one token to choose: after the committed line of the session in `slot`, and `path` after it."""

    slot: int
    position: int
    """Absolute position of the token to choose."""
    path: Sequence[int] = ()
    """Token ids between the committed line and this token. Penalties count them as output; without any they may be left
    out."""


class _Candidates(NamedTuple):
    """What may be chosen in each row, and what speaks for it."""

    token_ids: Tensor | None
    """[R, K]: the token of each candidate, the most likely first; None if candidate v is token v."""
    scores: Tensor
    """[R, K] float64: processed logits / T; -inf where a filter dropped the token."""
    perturbed: Tensor
    """[R, K] float64: scores and noise; no noise in greedy rows."""

    def tokens_at(self, indices: Tensor) -> Tensor:
        """The token ids of the candidates at `indices` [R, n]."""
        return indices if self.token_ids is None else self.token_ids.gather(-1, indices)

    def best(self, width: int) -> tuple[list[list[int]], list[list[float]]]:
        """The token ids and perturbed scores of the `width` best of each row, in order; fewer where fewer are left."""
        remaining = self.perturbed.clone()
        picks: list[Tensor] = []
        scores: list[Tensor] = []
        for _ in range(min(width, remaining.shape[-1])):
            # Not torch.topk, whose order among equals is undefined.
            score, index = remaining.max(-1, keepdim=True)
            picks.append(self.tokens_at(index))
            scores.append(score)
            remaining.scatter_(-1, index, -math.inf)
        table = torch.stack((torch.cat(picks, -1).double(), torch.cat(scores, -1))).tolist()
        found = [
            [(int(token_id), score) for token_id, score in zip(*row, strict=True) if score > -math.inf]
            for row in zip(*table, strict=True)
        ]
        return [[token_id for token_id, _ in row] for row in found], [[score for _, score in row] for row in found]


class Sampler:
    """Holds the sampling parameters, and for penalties the token counts, of the sessions in its slots.

    Slots are integers below `max_sessions`. The token ids, slots and parameters that come in are trusted: the caller
    has validated them. Not thread-safe.
    """

    def __init__(self, vocab_size: int, max_sessions: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._params: dict[int, SamplingParams] = {}
        self._shifting: set[int] = set()
        """Slots whose processed logits differ from the raw ones."""
        self._for_native: set[int] = set()
        """Slots for which the native operators may choose."""
        self._biases: dict[int, tuple[Tensor, Tensor]] = {}
        self._seeds = torch.zeros(max_sessions, dtype=torch.int64, device=device)
        # Rows: temperature, top_k, top_p, log(min_p), scale of the noise.
        self._shaping = torch.zeros(5, max_sessions, dtype=torch.float64, device=device)
        # Rows: repetition, frequency and presence penalty.
        self._penalties = torch.zeros(3, max_sessions, dtype=torch.float32, device=device)
        self._token_counts: dict[int, tuple[Tensor, Tensor]] = {}
        """Of each penalized session which tokens the prompt holds (bool) and how often the output holds each (int32),
        [V] each: five bytes a token id, so only they have it."""

    def open(
        self, slot: int, params: SamplingParams, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]
    ) -> None:
        """Gives `slot` to a session whose committed line is the prompt and the output so far."""
        self.close(slot)
        self._params[slot] = params
        if params.logit_bias or params.penalized:
            self._shifting.add(slot)
        if params.greedy or params.temperature >= NATIVE_TEMPERATURE_MIN:
            self._for_native.add(slot)
        self._seeds[slot] = as_int64(params.seed)
        self._shaping[:, slot] = self._tensor(_shaping_of(params, self._vocab_size), torch.float64)
        if params.logit_bias:
            token_ids, biases = zip(*params.logit_bias, strict=True)
            self._biases[slot] = self._tensor(token_ids, torch.int64), self._tensor(biases, torch.float32)
        if params.penalized:
            self._penalties[:, slot] = self._tensor(
                [params.repetition_penalty, params.frequency_penalty, params.presence_penalty], torch.float32
            )
            prompt_seen = torch.zeros(self._vocab_size, dtype=torch.bool, device=self._device)
            prompt_seen[self._tensor(prompt_token_ids, torch.int64)] = True
            output_counts = torch.zeros(self._vocab_size, dtype=torch.int32, device=self._device)
            self._token_counts[slot] = prompt_seen, output_counts
            self.commit(slot, output_token_ids)

    def commit(self, slot: int, token_ids: Sequence[int]) -> None:
        """Adds committed output to the session's line. Costs nothing unless the session is penalized."""
        if self._params[slot].penalized and token_ids:
            _, output_counts = self._token_counts[slot]
            committed = self._tensor(token_ids, torch.int64)
            output_counts.index_add_(0, committed, torch.ones_like(committed, dtype=output_counts.dtype))

    def close(self, slot: int) -> None:
        """Forgets the session in `slot`; closing an empty slot changes nothing."""
        self._params.pop(slot, None)
        self._shifting.discard(slot)
        self._for_native.discard(slot)
        self._biases.pop(slot, None)
        self._token_counts.pop(slot, None)

    def choose(self, logits: Tensor, rows: Sequence[Row]) -> list[int]:
        """The token of each row; `logits` [R, V] of any float type belong to `rows`, one each."""
        slots = [row.slot for row in rows]
        if self._native(slots):
            best, _ = self._best_of(logits, rows, slots, 1)
            return [tokens[0] if tokens else 0 for tokens in best]
        if self._shifting.isdisjoint(slots) and all(self._params[slot].greedy for slot in slots):
            return logits.argmax(-1).tolist()
        candidates = self._candidates(logits, rows, num_greedy=1)
        return candidates.tokens_at(candidates.perturbed.argmax(-1, keepdim=True)).squeeze(-1).tolist()

    def propose(self, logits: Tensor, rows: Sequence[Row], width: int) -> tuple[list[list[int]], list[list[float]]]:
        """The `width` tokens of each row that the choice prefers, best first: the first is what `choose` takes.

        With them their *margins*, in units of processed logit / T: by how much the perturbed score of each is below the
        first one's, and for the first by how much it is above the second one's, infinite if there is none. Another
        model chooses alike, with the same noise, unless its scores differ by more than that. A row whose filters leave
        fewer than `width` tokens proposes those.
        """
        if not rows:
            return [], []
        slots = [row.slot for row in rows]
        num_best = max(width, 2)
        if self._native(slots):
            token_ids, scores = self._best_of(logits, rows, slots, num_best)
        else:
            token_ids, scores = self._candidates(logits, rows, num_greedy=num_best).best(num_best)
        return [row[:width] for row in token_ids], [_margins(row)[:width] for row in scores]

    def logprobs(self, logits: Tensor, token_ids: Sequence[int], num_top: int) -> tuple[TokenLogprobs, ...]:
        """Log-probabilities of `token_ids`, one for each row of the unprocessed `logits` [R, V], and of the `num_top`
        most likely tokens beside it, best first."""
        logits = logits.float()
        top_logits, top_ids = _ranked(logits, min(num_top, logits.shape[-1]))
        own_logits = logits.gather(-1, self._tensor(token_ids, torch.int64)[:, None])
        log_probs = torch.cat((own_logits, top_logits), -1) - logits.logsumexp(-1, keepdim=True)
        table = torch.cat((log_probs.double(), top_ids.double()), -1).tolist()
        num_values = log_probs.shape[-1]
        return tuple(
            TokenLogprobs(row[0], tuple(int(token_id) for token_id in row[num_values:]), tuple(row[1:num_values]))
            for row in table
        )

    def _candidates(self, logits: Tensor, rows: Sequence[Row], num_greedy: int) -> _Candidates:
        """The candidates of each row; at least the best `num_greedy` of a greedy one."""
        vocab_size = self._vocab_size
        params = [self._params[row.slot] for row in rows]
        sampled = [each for each in params if not each.greedy]
        slots, positions = self._tensor([[row.slot for row in rows], [row.position for row in rows]], torch.int64)
        temperature, top_k, top_p, log_min_p, noise_scale = self._shaping[:, slots, None]  # [R, 1] each
        processed = self._processed(logits, rows, slots)

        num_ranked = min(vocab_size, max(num_greedy if each.greedy else each.top_k or vocab_size for each in params))
        if num_ranked < vocab_size or any(each.top_k or each.top_p < 1.0 for each in sampled):
            values, token_ids = _ranked(processed, num_ranked)
            scores = values.double() / temperature
            ranks = torch.arange(num_ranked, device=self._device)
            scores.masked_fill_(ranks >= top_k, -math.inf)
            if any(each.top_p < 1.0 for each in sampled):
                probs = scores.softmax(-1)
                # A token stays while the more likely ones do not reach top_p by themselves.
                scores.masked_fill_(probs.cumsum(-1) - probs >= top_p, -math.inf)
        else:
            token_ids = None
            scores = processed.double() / temperature
        if any(each.min_p > 0.0 for each in sampled):
            scores.masked_fill_(scores < scores.amax(-1, keepdim=True) + log_min_p, -math.inf)
        if not sampled:
            return _Candidates(token_ids, scores, scores)
        noise = gumbel(self._seeds[slots], positions, vocab_size, token_ids)
        return _Candidates(token_ids, scores, noise.mul_(noise_scale).add_(scores))

    def _native(self, slots: Sequence[int]) -> bool:
        """Whether the native operator can choose for rows of these slots."""
        return native.available(self._device) and self._for_native.issuperset(slots)

    def _best_of(
        self, logits: Tensor, rows: Sequence[Row], slots: Sequence[int], width: int
    ) -> tuple[list[list[int]], list[list[float]]]:
        positions = [row.position for row in rows]
        if not self._shifting.isdisjoint(slots):
            logits = self._processed(logits, rows, self._tensor(slots, torch.int64))
        return best_of(logits, self._shaping, self._seeds, slots, positions, width)

    def _processed(self, logits: Tensor, rows: Sequence[Row], slots: Tensor) -> Tensor:
        """Logits [R, V] in float32 after bias and penalties; the logits themselves stay as they are."""
        shifted = [index for index, row in enumerate(rows) if row.slot in self._shifting]
        processed = logits.to(torch.float32, copy=bool(shifted))
        for index in shifted:
            if rows[index].slot in self._biases:
                processed[index].index_add_(0, *self._biases[rows[index].slot])
        penalized = [index for index in shifted if self._params[rows[index].slot].penalized]
        if penalized:
            which = self._tensor(penalized, torch.int64)
            processed[which] = self._penalized(processed[which], slots[which], [rows[index] for index in penalized])
        return processed

    def _penalized(self, logits: Tensor, slots: Tensor, rows: Sequence[Row]) -> Tensor:
        """Logits [P, V] of penalized rows after the three penalties."""
        held = [self._token_counts[row.slot] for row in rows]
        in_prompt, counts = (torch.stack(each) for each in zip(*held, strict=True))  # [P, V] each
        path_tokens = [(index, token_id) for index, row in enumerate(rows) for token_id in row.path]
        if path_tokens:
            index, token_ids = self._tensor(path_tokens, torch.int64).T
            counts.index_put_((index, token_ids), torch.ones_like(index, dtype=counts.dtype), accumulate=True)
        in_output = counts > 0
        repetition, frequency, presence = self._penalties[:, slots, None]  # [P, 1] each
        repeated = torch.where(logits < 0, logits * repetition, logits / repetition)
        logits = torch.where(in_prompt | in_output, repeated, logits)
        return logits - frequency * counts - presence * in_output

    def _tensor(self, values: Sequence[object], dtype: torch.dtype) -> Tensor:
        """`values` on the device, queued behind what the device is doing instead of waiting for it."""
        return torch.tensor(values, dtype=dtype).to(self._device, non_blocking=True)


def _margins(scores: list[float]) -> list[float]:
    """Of perturbed scores in order; see `Sampler.propose`."""
    margins = [scores[0] - score for score in scores]
    if margins:
        margins[0] = margins[1] if len(margins) > 1 else math.inf
    return margins


def _shaping_of(params: SamplingParams, vocab_size: int) -> list[float]:
    """Temperature, top_k, top_p, log(min_p) and the scale of the noise, each such that it has no effect where unset."""
    if params.greedy:
        return [1.0, vocab_size, math.inf, -math.inf, 0.0]
    return [
        params.temperature,
        params.top_k or vocab_size,
        params.top_p if params.top_p < 1.0 else math.inf,  # a rounded sum may reach 1 before the last token
        math.log(params.min_p) if params.min_p > 0.0 else -math.inf,
        1.0,
    ]


def _ranked(logits: Tensor, num_ranked: int) -> tuple[Tensor, Tensor]:
    """The `num_ranked` largest of each row of float32 `logits` [R, V], of equals the lowest id first; and their ids.

    torch.topk orders equals as it likes. So it gets keys without equals: the float's bits in an order-preserving form
    above, the token id counted from the end below.
    """
    last_id = logits.shape[-1] - 1
    bits = (logits + 0.0).view(torch.int32)  # the sum turns -0.0, equal to 0.0 but of lesser bits, into 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # of negative floats the larger bits are the smaller number
    keys = (ordered.long() << 32) | torch.arange(last_id, -1, -1, device=logits.device)
    token_ids = last_id - (keys.topk(num_ranked).values & 0xFFFFFFFF)
    return logits.gather(-1, token_ids), token_ids
