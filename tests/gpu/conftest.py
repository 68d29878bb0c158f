"""What every test on a CUDA device needs: float32 that is float32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def no_tf32() -> Iterator[None]:
    """Products of matrices in float32 keep their 24 bits, whatever the process was told before."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = allowed
