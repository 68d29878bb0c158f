"""Proof at start that the ragged engine computes this very model as transformers does, before anybody relies on it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.kv_cache.cells import FP8, stored
from outrider.engine.load.probe import LayerFacts, no_numbers, num_positions

_BRANCHES = ((11, 23, 5, 31), (42, 7, 19))
"""Two branches below a line's end: enough for a wrong mask, position or cache to show, and for a few rows whose experts
a rounding has changed not to be half of them."""
_SHORT_LINE = 6
_LONG_LINE = 64
"""Tokens of the lines that are checked: enough for what builds up over tokens to show."""
LINE_TOKENS_MAX = 256
"""Where a layer has a window, the long line reaches past the smallest one if that takes no more tokens than this. It
costs what reading a prompt of that length costs, twice. A longer window is proved by its mask alone (`mask.py`)."""
_CHAIN = 16
"""Tokens at the end of the long line that are checked as a branch, all of them past the window."""
_NUM_NODES = (0, 1, 2, 3, 5, 7, 11, 15, 23, 31)
"""Sizes of trees beside which one token's logits are compared: around the sizes at which kernels change."""
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2}
"""Largest difference of logits, relative to the largest logit, that rounding explains."""


class Passage(NamedTuple):
    """A line with branches below its end, and what transformers says of it."""

    line: list[int]
    branches: list[list[int]]
    logits: Tensor
    """[R, V]: after each token of each branch."""


class Effect(NamedTuple):
    """What narrower cells do to a model's choices, over some passages."""

    largest_difference: float
    """Of logits, relative to the largest logit."""
    same_choices: float
    """Share of the places at which the likeliest token is the same."""


_NARROW = "outrider-narrow"
"""Name under which the eager attention over cells in eight bits is registered with transformers."""


def reference(
    model: PreTrainedModel, layers: Sequence[LayerFacts], max_context: int, cell_dtype: torch.dtype | None = None
) -> list[Passage]:
    """Passages of up to `max_context` tokens by transformers' own attention, over keys and values as cells of that type
    keep them; None is the model's own. Call it before building the engine."""
    vocab_size: int = model.config.get_text_config().vocab_size
    past_window = min((facts.window for facts in layers if facts.window is not None), default=0) + _CHAIN
    wanted = max(_LONG_LINE, past_window) if past_window <= LINE_TOKENS_MAX else _LONG_LINE
    line = _line(min(wanted, max_context, num_positions(model.config)), vocab_size)
    short, long = max(min(_SHORT_LINE, len(line) - len(_BRANCHES[0])), 1), max(len(line) - _CHAIN, 1)
    branches = [[token_id % vocab_size for token_id in branch] for branch in _BRANCHES]
    return [
        _passage(model, line[:short], branches, cell_dtype),
        _passage(model, line[:long], [line[long:]], cell_dtype),
    ]


def _passage(
    model: PreTrainedModel, line: list[int], branches: list[list[int]], cell_dtype: torch.dtype | None
) -> Passage:
    def after(branch: list[int]) -> Tensor:
        """[len(branch), V]"""
        token_ids = torch.tensor([[*line, *branch]], device=model.device)
        return model(input_ids=token_ids, use_cache=False, logits_to_keep=len(branch)).logits[0, -len(branch) :]

    try:
        if cell_dtype == FP8:
            model.set_attn_implementation(_NARROW)
        with torch.inference_mode():
            logits = torch.cat([after(branch) for branch in branches]).float()
    except Exception as error:  # models raise whatever they meet
        raise UnsupportedModelError(f"transformers cannot run this model: {type(error).__name__}: {error}") from error
    finally:
        model.set_attn_implementation("eager")
    if logits.isnan().any():
        raise no_numbers(model)
    return Passage(line, branches, logits)


def _narrow_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **arguments: Any
) -> tuple[Tensor, Tensor | None]:
    """The eager attention of the model's own file, over keys and values as cells in eight bits keep them."""
    key, value = (stored(each, FP8).to(each.dtype) for each in (key, value))
    return sys.modules[type(module).__module__].eager_attention_forward(module, query, key, value, mask, **arguments)


AttentionInterface.register(_NARROW, _narrow_attention)
AttentionMaskInterface.register(_NARROW, AttentionMaskInterface()["eager"])


def check(engine: Engine, passages: Sequence[Passage]) -> None:
    """Raises UnsupportedModelError if the engine's logits differ from those of `passages` by more than rounding."""
    for passage in passages:
        actual = _logits(engine, passage)
        errors = (actual - passage.logits).abs().amax(dim=1) / passage.logits.abs().max()  # [R]
        # In 16 bits a rounding may send a token to another expert, which changes a row or two for good reason.
        error = (errors.max() if engine.dtype == torch.float32 else errors.median()).item()
        if not error <= _TOLERANCE[engine.dtype]:
            raise UnsupportedModelError(
                f"on the ragged engine this model's logits are off by {error:.1%} of the largest after "
                f"{len(passage.line)} tokens: its attention does something that transformers' attention interface does "
                "not tell, such as position biases or shared caches; it cannot be served"
            )


def effect(engine: Engine, passages: Sequence[Passage]) -> Effect:
    """How far the engine's logits and likeliest tokens are from those of `passages`, over cells of the model's type."""
    pairs = [(_logits(engine, passage), passage.logits) for passage in passages]
    differences = [((found - exact).abs().max() / exact.abs().max()).item() for found, exact in pairs]
    same = torch.cat([found.argmax(1) == exact.argmax(1) for found, exact in pairs])
    return Effect(max(differences), same.float().mean().item())


def _logits(engine: Engine, passage: Passage) -> Tensor:
    """[R, V], as `Passage.logits`."""
    parents: list[int] = []
    for branch in passage.branches:
        parents += [LINE_END, *range(len(parents), len(parents) + len(branch) - 1)]
    token_ids = [token_id for branch in passage.branches for token_id in branch]
    slot = engine.acquire()
    try:
        engine.step([Job(slot, passage.line[:-2] or passage.line)])
        job = Job(slot, passage.line, parents, token_ids, wanted=range(len(token_ids)))
        return engine.step([job]).logits.float()
    finally:
        engine.release(slot)


def depends_on_batch(engine: Engine) -> bool:
    """Whether the logits after one line differ in any bit by how many tree nodes share their step.

    Where they do, two almost equally likely tokens may change places with the size of a batch.
    """
    line = _line(_SHORT_LINE, engine.vocab_size)
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


def _line(num_tokens: int, vocab_size: int) -> list[int]:
    return [(7 * index + 5) % vocab_size for index in range(num_tokens)]
