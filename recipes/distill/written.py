"""Text that the target writes: what a draft has to guess at run time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.core.protocol.sampling import SamplingParams
from outrider.engine import native
from outrider.engine.engine import Engine
from outrider.engine.jobs import Job
from outrider.engine.kv_cache.slots import Slot
from outrider.engine.load.folder import eos_token_ids
from outrider.engine.sample.sampler import Row, Sampler

TEMPERATURES = (0.0, 0.8, 1.0, 0.8)
"""At which texts are written and learned, by turns: what requests ask for, greedy ones less often, as greedy text
repeats itself."""

AT_ONCE = 64
"""Texts that are written side by side, and kept in one file."""


class Text(NamedTuple):
    """One text."""

    token_ids: Sequence[int]
    num_given: int
    """Tokens of the prompt, which come first."""
    temperature: float
    seed: int
    """Of the noise by which the target chose its tokens."""


class _Writing(NamedTuple):
    """A text that is not yet written to its end."""

    index: int
    slot: Slot
    line: list[int]


class Writer:
    """A target that continues prompts, many at a time in ragged batches."""

    def __init__(self, target: PreTrainedModel, *, max_context: int, cache: Path | None) -> None:
        """With a folder `cache` it runs native operators on a CPU, as a worker does, if the folder has them or they can
        be built into it."""
        with suppress(UnsupportedModelError):
            if cache is not None and target.device.type == "cpu":
                native.load(cache)
        self._engine = Engine(target, max_sessions=AT_ONCE, max_context=max_context)
        with suppress(UnsupportedModelError):
            if native.available(self._engine.device):
                self._engine.export()
        self._sampler = Sampler(self._engine.vocab_size, AT_ONCE, self._engine.device)
        self._ends = frozenset(eos_token_ids(target))

    def write(self, prompts: Sequence[Sequence[int]], num_tokens: int, seed: int) -> list[Text]:
        """Continues each prompt by `num_tokens` tokens, or to the token that ends a text.

        Text i is written at the i-th of TEMPERATURES, by turns, with the noise of the seed `seed` + i. At most AT_ONCE
        prompts, none of them empty.
        """
        texts = [
            Text([], len(prompt), TEMPERATURES[index % len(TEMPERATURES)], seed + index)
            for index, prompt in enumerate(prompts)
        ]
        writing: list[_Writing] = []
        for index, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            slot = self._engine.acquire(cache_salt=str(seed))  # what other calls have cached changes nothing
            params = SamplingParams(temperature=text.temperature, seed=text.seed)
            self._sampler.open(slot.index, params, (), ())
            writing.append(_Writing(index, slot, list(prompt)))
        while writing:
            output = self._engine.step([Job(each.slot, each.line) for each in writing])
            ready = [each for each, rows in zip(writing, output.num_rows, strict=True) if rows is not None]
            rows = [Row(each.slot.index, len(each.line)) for each in ready]
            for each, token_id in zip(ready, self._sampler.choose(output.logits, rows) if rows else (), strict=True):
                each.line.append(token_id)
                if token_id in self._ends or len(each.line) == len(prompts[each.index]) + num_tokens:
                    texts[each.index] = texts[each.index]._replace(token_ids=each.line)
                    self._sampler.close(each.slot.index)
                    self._engine.release(each.slot)
                    writing.remove(each)
        return texts


def save(texts: Sequence[Text], path: Path) -> None:
    """Keeps texts in one file, which is there as a whole or not at all."""
    tensors = {
        "token_ids": torch.tensor([token_id for text in texts for token_id in text.token_ids], dtype=torch.int32),
        "lengths": torch.tensor([len(text.token_ids) for text in texts]),
        "num_given": torch.tensor([text.num_given for text in texts]),
        "temperatures": torch.tensor([text.temperature for text in texts], dtype=torch.float64),
        "seeds": torch.tensor([text.seed for text in texts]),
    }
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished)
    unfinished.replace(path)


def load(path: Path) -> list[Text]:
    """What `save` kept."""
    tensors: dict[str, Tensor] = load_file(path)
    token_ids = tensors.pop("token_ids").tolist()
    lengths, *rest = (tensors[name].tolist() for name in ("lengths", "num_given", "temperatures", "seeds"))
    ends = accumulate(lengths, initial=0)
    return [Text(token_ids[first:end], *facts) for (first, end), *facts in zip(pairwise(ends), *rest, strict=True)]
