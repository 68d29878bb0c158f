"""Ranks that are lost: nobody waits for them for ever."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch.distributed as dist

from outrider.engine.engine import OutOfStepError
from outrider.engine.jobs import Job
from outrider.engine.parallel import ranks as module
from outrider.worker.building import build
from tests.e2e.stack import save_tiny
from tests.engine import tiny_models
from tests.parallel.divided import CPU, divided, pair


def test_a_rank_that_does_not_answer_ends_the_step_and_one_without_rank_0_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEP_SECONDS", 1.0)
    folder = save_tiny(tiny_models.build("llama"), tmp_path / "model")
    with pair([folder]) as (ranks, other):
        engine = build(divided(folder), folder, CPU, ranks=ranks).engine
        slot = engine.acquire()
        engine.step([Job(slot, [1, 2, 3])])
        other.send_signal(signal.SIGSTOP)
        with pytest.raises(OutOfStepError):
            engine.step([Job(slot, [1, 2, 3, 4])])
        dist.destroy_process_group()
        other.send_signal(signal.SIGCONT)
        assert other.wait() != 0
