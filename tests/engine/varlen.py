"""What `torch.nn.attention.varlen.varlen_attn` is documented to compute, sequence after sequence in float32.

It refuses what FlashAttention's kernels do not take, and leaves undefined what they do. So it stands for them where
there is no GPU; `tests/gpu/test_gpu_paged.py` compares the two.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest


class Varlen:
    """Counts its calls."""

    def __init__(self, page_step: int = 256) -> None:
        """Pages must be of a multiple of `page_step` cells."""
        self.num_calls = 0
        self._page_step = page_step

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        return_aux: AuxRequest,
        scale: float,
        window_size: tuple[int, int],
        enable_gqa: bool,
        seqused_k: Tensor | None,
        block_table: Tensor | None,
        num_splits: int,
    ) -> tuple[Tensor, Tensor]:
        self.num_calls += 1
        num_heads, head_size = query.shape[1:]
        num_kv_heads = key.shape[-2]
        assert return_aux.lse
        assert num_splits == 1, "with more, kernels that read pages are wrong (pytorch/pytorch#194167)"
        assert window_size in ((-1, -1), (-1, 0))
        assert head_size % 8 == 0
        assert head_size <= 256
        assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        assert query.dtype == key.dtype == value.dtype
        assert key.shape == value.shape
        assert key.shape[-1] == head_size
        assert num_kv_heads == num_heads or (enable_gqa and num_heads % num_kv_heads == 0)
        tables = [table for table in (cu_seq_q, cu_seq_k, seqused_k, block_table) if table is not None]
        assert {table.dtype for table in tables} == {torch.int32}
        assert all(table.is_contiguous() for table in tables)
        num_queries, num_keys = cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist()
        num_sequences = len(num_queries)
        assert num_sequences > 0
        assert len(num_keys) == num_sequences
        assert min(num_queries) >= 1
        assert sum(num_queries) == len(query) == cu_seq_q[-1]
        if block_table is None:
            assert seqused_k is None
            assert key.dim() == 3
            assert len(key) == cu_seq_k[-1]
            keys, values = key.split(num_keys), value.split(num_keys)
        else:
            assert seqused_k is not None
            assert key.dim() == 4
            assert key.shape[1] % self._page_step == 0
            assert seqused_k.tolist() == num_keys
            assert len(block_table) == num_sequences
            pages = [row[: -(-count // key.shape[1])].long() for row, count in zip(block_table, num_keys, strict=True)]
            keys, values = (
                [cache[row].flatten(0, 1)[:count] for row, count in zip(pages, num_keys, strict=True)]
                for cache in (key, value)
            )
        assert min(num_keys) >= 1, "of no keys the log-sum is +inf, and where pages are read it is written anywhere"
        assert max(num_queries) <= max_q
        assert max(num_keys) <= max_k
        assert max_q > 1 or len(query) == num_sequences
        output, log_sums = torch.empty_like(query), query.new_empty(num_heads, len(query), dtype=torch.float32)
        for index, queries in enumerate(query.split(num_queries)):
            first, end = int(cu_seq_q[index]), int(cu_seq_q[index + 1])
            attended, sums = _attention(queries, keys[index], values[index], scale, causal=window_size == (-1, 0))
            output[first:end], log_sums[:, first:end] = attended.to(query.dtype), sums
        if max_q == 1 and block_table is not None and num_kv_heads != num_heads:
            log_sums.fill_(torch.nan)  # kernels write them in another order than they read them in
        return output, log_sums


def _attention(
    queries: Tensor,  # [Q, H, size]
    keys: Tensor,  # [C, num_kv_heads, size]
    values: Tensor,
    scale: float,
    *,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """[Q, H, size] and [H, Q]. Causal: the last query sees all keys, each one before it one key less."""
    num_shared = queries.shape[1] // keys.shape[1]
    keys, values = (each.float().repeat_interleave(num_shared, 1).transpose(0, 1) for each in (keys, values))
    scores = queries.float().transpose(0, 1) @ keys.transpose(1, 2) * scale
    if causal:
        num_queries, num_keys = scores.shape[1:]
        assert num_queries <= num_keys
        hidden = torch.ones(num_queries, num_keys, dtype=torch.bool, device=scores.device).triu(
            num_keys - num_queries + 1
        )
        scores = scores.masked_fill(hidden, -torch.inf)
    return (scores.softmax(-1) @ values).transpose(0, 1), scores.logsumexp(-1)
