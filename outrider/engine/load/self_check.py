"""Proof at start that the ragged engine computes this very model as transformers does, before anybody relies on it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job

_LINE_TOKENS = 6
_BRANCHES = ((11, 23), (42,))
"""Two branches below the line's end: enough for a wrong mask, position or cache to show."""
_NUM_NODES = (0, 1, 2, 3, 5, 7, 11, 15, 23, 31)
"""Sizes of trees beside which one token's logits are compared: around the sizes at which kernels change."""
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2}
"""Largest difference of logits, relative to the largest logit, that rounding explains."""


def reference_logits(model: PreTrainedModel) -> list[Tensor]:
    """The logits after each branch by transformers' own attention, [V] each. Call it before building the engine."""
    device = model.device
    line = _line(model.config.get_text_config().vocab_size)
    with torch.inference_mode():
        return [
            model(input_ids=torch.tensor([[*line, *branch]], device=device), use_cache=False).logits[0, -1]
            for branch in _branches(model.config.get_text_config().vocab_size)
        ]


def check(engine: Engine, reference: list[Tensor]) -> None:
    """Raises UnsupportedModelError if the engine's logits differ from `reference` by more than rounding."""
    line = _line(engine.vocab_size)
    (first, second), (third,) = _branches(engine.vocab_size)
    slot = engine.acquire()
    try:
        engine.step([Job(slot, line[:-2])])
        job = Job(slot, line, parents=[LINE_END, 0, LINE_END], token_ids=[first, second, third], wanted=[1, 2])
        logits = engine.step([job]).logits
    finally:
        engine.release(slot)
    expected = torch.stack(reference).float()
    error = (logits.float() - expected).abs().max().item() / expected.abs().max().item()
    if not error <= _TOLERANCE[engine.dtype]:
        raise UnsupportedModelError(
            f"on the ragged engine this model's logits are off by {error:.1%} of the largest: its attention does "
            "something that transformers' attention interface does not tell, such as position biases or shared caches; "
            "it cannot be served"
        )


def depends_on_batch(engine: Engine) -> bool:
    """Whether the logits after one line differ in any bit by how many tree nodes share their step.

    Where they do, two almost equally likely tokens may change places with the size of a batch.
    """
    line = _line(engine.vocab_size)
    slot = engine.acquire()
    found: list[Tensor] = []
    try:
        for num_nodes in _NUM_NODES:
            engine.step([Job(slot, line[:-1])])
            parents = [LINE_END, *range(num_nodes)][:num_nodes]
            job = Job(slot, line, parents=parents, token_ids=[0] * num_nodes, wanted=range(LINE_END, num_nodes))
            found.append(engine.step([job]).logits[0].clone())
            slot.clear()
    finally:
        engine.release(slot)
    return any(not torch.equal(logits, found[0]) for logits in found)


def _line(vocab_size: int) -> list[int]:
    return [(7 * index + 5) % vocab_size for index in range(_LINE_TOKENS)]


def _branches(vocab_size: int) -> list[tuple[int, ...]]:
    return [tuple(token_id % vocab_size for token_id in branch) for branch in _BRANCHES]
