"""What a step takes on a GPU beside weights, keys and values: measured once, before these get their memory."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.engine import STEP_TOKENS_MAX, Engine
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.sample.processor import Row
from outrider.engine.sample.sampler import Sampler

ROWS_PER_SESSION = 9
"""Rows of logits that a full step has for each session: its line's end, and a tree of eight tokens."""

_NUM_SESSIONS = 2
"""Sessions that make up the step: a tree has at most half as many tokens as a step."""
_SAMPLING = SamplingParams(temperature=1.0, top_p=0.9, seed=1)
"""What takes the most memory where torch chooses."""


def step_peak_bytes(model: PreTrainedModel, max_sessions: int) -> int | None:
    """Bytes that the largest step of `max_sessions` sessions takes for a moment, the choice of its tokens included.

    None where it was not measured: on a CPU, and on a GPU that has no room for such a step.
    """
    device = model.device
    if not _is_measured(device):
        return None
    try:
        engine = Engine(model, max_sessions=_NUM_SESSIONS, max_context=2)
        num_nodes = min(STEP_TOKENS_MAX // _NUM_SESSIONS - 1, engine.vocab_size)
        num_rows = min(max_sessions * ROWS_PER_SESSION // _NUM_SESSIONS, num_nodes + 1)
        sampler = Sampler(engine.vocab_size, _NUM_SESSIONS, device)
        jobs: list[Job] = []
        for slot in (engine.acquire(), engine.acquire()):
            sampler.open(slot.index, _SAMPLING, [0], [])
            wanted = range(LINE_END, LINE_END + num_rows)
            jobs.append(Job(slot, [0], [LINE_END] * num_nodes, range(num_nodes), wanted))
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        logits = engine.step(jobs).logits
        sampler.choose(logits, [Row(job.slot.index, 1) for job in jobs for _ in job.wanted])
        return torch.cuda.max_memory_allocated(device) - before
    except torch.OutOfMemoryError:
        return None


def _is_measured(device: torch.device) -> bool:
    return device.type == "cuda"
