"""Whoever computes is on the worker's own GPU: a worker on cuda:1 takes nothing on cuda:0."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.device_thread import DeviceThread
from outrider.worker import startup
from outrider.worker.config import WorkerConfig

ELSEWHERE = "cuda:1"


class TwoGpus(threading.local):
    """A machine of two, each thread of which begins on the first, as CUDA has it."""

    current = 0

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        """Stands for `torch.cuda.device`."""
        before, self.current = self.current, device.index
        try:
            yield
        finally:
            self.current = before


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> TwoGpus:
    found = TwoGpus()
    monkeypatch.setattr(torch.cuda, "device", found.device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return found


def config(device: str) -> WorkerConfig:
    return WorkerConfig.model_validate({"model": "m", "listen": "", "device": device})


@pytest.mark.parametrize(("device", "expected"), [(ELSEWHERE, 1), ("cpu", 0)])
def test_the_device_thread_is_on_its_device(gpus: TwoGpus, device: str, expected: int) -> None:
    seen: list[int] = []

    class Noting:
        def step(self) -> None:
            seen.append(gpus.current)

    thread = DeviceThread(Noting(), on_death=lambda error: None, device=torch.device(device))
    thread.start()
    thread.submit(lambda: seen.append(gpus.current))
    thread.stop()
    assert set(seen) == {expected}
    assert gpus.current == 0, "the thread that started it stays where it was"


def test_a_model_is_loaded_on_its_device(gpus: TwoGpus, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def resolve(model: str) -> None:
        seen.append(gpus.current)
        raise UnsupportedModelError("that is enough")

    monkeypatch.setattr(startup, "resolve_folder", resolve)
    with pytest.raises(UnsupportedModelError, match="that is enough"):
        startup.load(config(ELSEWHERE))
    assert (seen, gpus.current) == ([1], 0)


@pytest.mark.usefixtures("gpus")
def test_a_device_that_is_not_there_is_refused_in_words() -> None:
    with pytest.raises(UnsupportedModelError, match="--device cuda:2: the last CUDA device here is cuda:1"):
        startup.load(config("cuda:2"))
