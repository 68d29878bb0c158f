"""Chance as a function of (seed, position, token): Gumbel noise from a counter-based hash.

`argmax_v(logit[v] + G(seed, position, v))` draws from softmax(logit): the largest of independent Gumbel-shifted logits
is so distributed (the Gumbel-max trick). As the noise has no state, whoever asks for the same token at the same
position with the same seed gets the same noise: in any batch, after any failover, in either model.

The hash is SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) with
Stafford's variant 13 of the finaliser. One finalised word selects a stream per seed, the word at index `position` of
that stream selects a stream per position, and the word at index `token` of that one is the noise. Integer arithmetic
makes it, so its bits are the same on every device; the two logarithms after it may differ in their last place.
"""

from __future__ import annotations

import torch
from torch import Tensor

GUMBEL_MIN = -3.61
"""No noise is below it: the smallest uniform is 2^-53, and -log(53 log 2) = -3.604."""
GUMBEL_MAX = 36.74
"""No noise is above it: the largest uniform is 1 - 2^-53, and -log(-log(1 - 2^-53)) = 53 log 2 = 36.737."""

_UNIFORM_BITS = 52
"""Bits of a uniform. One more would let the largest one round up to 1."""


def as_int64(word: int) -> int:
    """The signed integer with the same 64 bits as `word`, which may be anything in [-2^63, 2^64)."""
    return (word + 2**63) % 2**64 - 2**63


_GAMMA = as_int64(0x9E3779B97F4A7C15)
_MULTIPLIERS = as_int64(0xBF58476D1CE4E5B9), as_int64(0x94D049BB133111EB)


def hashed_words(seeds: Tensor, positions: Tensor, vocab_size: int, token_ids: Tensor | None = None) -> Tensor:
    """The 64 random bits of each (seed, position, token) as int64: the noise before it is given a shape.

    Arguments and shapes are those of `gumbel`.
    """
    streams = _mix(_mix(seeds + _GAMMA) + (positions + 1) * _GAMMA)  # [N]
    if token_ids is None:
        token_ids = torch.arange(vocab_size, device=seeds.device)  # [V]
    # ~t is -(t + 1), so this adds (t + 1) * _GAMMA. Spelt as a product of the range itself, inductor takes it for an
    # address, whose arithmetic may not wrap: wrong words, even writes outside the buffer (pytorch/pytorch#175966).
    return _mix(streams[:, None] - ~token_ids * _GAMMA)


def gumbel(seeds: Tensor, positions: Tensor, vocab_size: int, token_ids: Tensor | None = None) -> Tensor:
    """Standard Gumbel noise, float64, within [GUMBEL_MIN, GUMBEL_MAX]; a pure function of its arguments.

    Args:
        seeds: int64 [N]; an unsigned 64-bit seed as the int64 with the same bits (`as_int64`).
        positions: int64 [N]; absolute positions of the tokens to choose.
        vocab_size: V.
        token_ids: int64 [N, K] or None; the tokens whose noise is wanted, any subset in any order.

    Returns:
        [N, V], or [N, K] with the noise of the given tokens.
    """
    words = hashed_words(seeds, positions, vocab_size, token_ids)
    uniforms = _shifted_right(words, 64 - _UNIFORM_BITS).double()
    uniforms.add_(0.5).mul_(2.0**-_UNIFORM_BITS)  # exact, and strictly inside (0, 1)
    return uniforms.log_().neg_().log_().neg_()


def _mix(words: Tensor) -> Tensor:
    """The finaliser, in place: a bijection of 64-bit words; each bit of the input flips about half of the output's."""
    words.bitwise_xor_(_shifted_right(words, 30)).mul_(_MULTIPLIERS[0])
    words.bitwise_xor_(_shifted_right(words, 27)).mul_(_MULTIPLIERS[1])
    return words.bitwise_xor_(_shifted_right(words, 31))


def _shifted_right(words: Tensor, num_bits: int) -> Tensor:
    """The logical shift; that of int64 repeats the sign bit, which the mask clears."""
    return (words >> num_bits).bitwise_and_((1 << (64 - num_bits)) - 1)
