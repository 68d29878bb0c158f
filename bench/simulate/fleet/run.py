"""A fleet under load: clients that ask for one answer after the other, faults at set times, and what became of it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, Literal

from bench.load.percentiles import percentiles
from bench.simulate.clock import Clock
from bench.simulate.fleet.completion import Completion
from bench.simulate.fleet.coordinator import Coordinator
from bench.simulate.fleet.settings import Settings
from bench.simulate.fleet.worker import Worker, drafter, verifier
from bench.simulate.oracle import VOCAB_SIZE, OracleText
from bench.simulate.workers import VirtualDrafter, VirtualVerifier
from coordinator.replica import HANDOVER_SECONDS
from outrider.core.coordinate.liveness import SILENCE_SECONDS
from outrider.core.protocol.validation import AUTOMATIC_WIDTH_MAX

REPORT_SECONDS = 0.1
"""A worker's reports come that often."""

ANSWER_TOKENS_MIN = 8

Fault = Literal["kill", "freeze", "drain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultAt:
    """What happens to the worker of that name, so many seconds after the start."""

    seconds: float
    worker: str
    fault: Fault


class Fleet:
    """All processes of one run on one clock."""

    def __init__(self, settings: Settings, write: Callable[[int], OracleText] | None = None) -> None:
        """`write` makes the text of each request; what `settings` say of requests, if there is none."""
        self.settings = settings
        self.clock = Clock()
        shape, durations = settings.shape, settings.durations
        self._rng = random.Random(settings.asked.seed)
        self._texts: list[OracleText] = [OracleText(settings.asked.acceptance, 1, width=1)]
        """The first one is nobody's: workers learn from it how many tokens there are."""
        verify_ms, token_ms = durations.verify_ms, durations.verify_token_ms
        draft_ms, node_ms = durations.draft_ms, durations.draft_node_ms
        self.verifiers: list[Worker[VirtualVerifier]] = [
            verifier(
                f"verify-{number}",
                self.clock,
                self._texts,
                lambda num_tokens: (verify_ms + token_ms * (num_tokens - 1)) / 1000.0,
                shape.max_sessions,
            )
            for number in range(shape.num_verifiers)
        ]
        self.drafters: list[Worker[VirtualDrafter]] = [
            drafter(
                f"draft-{number}",
                self.clock,
                self._texts,
                lambda num_nodes: (draft_ms + node_ms * (num_nodes - 1)) / 1000.0,
                shape.max_sessions,
            )
            for number in range(shape.num_drafters)
        ]
        self.coordinators = [
            Coordinator(self.clock, durations, self.verifiers, self.drafters, self._rng, adaptive=settings.adaptive)
            for _ in range(shape.num_coordinators)
        ]
        self.ended: list[Completion] = []
        self._write = write or self._any_text

    def start(self, faults: Sequence[FaultAt] = ()) -> None:
        """Sets everything that will happen by itself."""
        settings = self.settings
        for number, coordinator in enumerate(self.coordinators):
            coordinator.on_end = partial(self._on_end, coordinator)
            self._report(coordinator, REPORT_SECONDS * (number + 1) / len(self.coordinators))
        for client in range(settings.shape.num_clients):
            coordinator = self.coordinators[client % len(self.coordinators)]
            # Clients that began all at once would stay in step for long.
            self.clock.at(self._rng.uniform(0.0, settings.warm_up_seconds / 2.0), partial(self._ask, coordinator))
        for fault in faults:
            self.clock.at(fault.seconds, partial(self._fault, fault))

    def run(self, faults: Sequence[FaultAt] = ()) -> None:
        """From the first request to the end of the time that counts."""
        settings = self.settings
        self.start(faults)
        before = [0.0] * len(self._busy())
        if settings.warm_up_seconds:
            self.clock.run(lambda: self.clock.now >= settings.warm_up_seconds)
            before = self._busy()
        self._tokens_before = self._num_tokens()
        end = settings.warm_up_seconds + settings.seconds
        self.clock.run(lambda: self.clock.now >= end)
        self.busy = [(now - then) / settings.seconds for now, then in zip(self._busy(), before, strict=True)]
        self.tokens_per_second = (self._num_tokens() - self._tokens_before) / settings.seconds

    def result(self) -> Mapping[str, Any]:
        """What JSON can hold. Times per token and first tokens are those of answers that ended while it counted."""
        num_verifiers, num_drafters = len(self.verifiers), len(self.drafters)
        verifying = self.busy[:num_verifiers]
        drafting = self.busy[num_verifiers : num_verifiers + num_drafters]
        coordinating = self.busy[num_verifiers + num_drafters :]
        counted = [each for each in self.ended if each.last_at > self.settings.warm_up_seconds]
        times = [each.decode_seconds_per_token * 1000.0 for each in counted if each.decode_seconds_per_token]
        first = [(each.first_at - each.asked_at) * 1000.0 for each in counted]
        num_rounds = sum(each.session.statistics.num_rounds for each in counted)
        return {
            "tokens_per_second": self.tokens_per_second,
            "num_answers": len(counted),
            "ms_per_token": _spread(times),
            "first_token_ms": _spread(first),
            "longest_gap_ms": max((each.longest_gap for each in counted), default=0.0) * 1000.0,
            "tokens_per_round": sum(each.num_tokens for each in counted) / max(num_rounds, 1),
            "verifiers_busy": _range(verifying),
            "drafters_busy": _range(drafting),
            "coordinators_busy": _range(coordinating),
            "num_undrafted": sum(each.num_undrafted for each in self.coordinators),
            "sessions_per_verifier": _range([len(each.device.scheduler.sessions) for each in self.verifiers]),
        }

    def _ask(self, coordinator: Coordinator) -> None:
        index = len(self._texts)
        self._texts.append(self._write(index))
        coordinator.ask(index, self._texts[index])

    def _any_text(self, index: int) -> OracleText:
        asked, rng = self.settings.asked, self._rng
        num_prompt = 1 + int(rng.expovariate(1.0 / asked.mean_prompt_tokens))
        num_answer = ANSWER_TOKENS_MIN + int(rng.expovariate(1.0 / asked.mean_answer_tokens))
        return OracleText(
            asked.acceptance,
            num_answer,
            width=AUTOMATIC_WIDTH_MAX,
            seed=index,
            prompt=[index % VOCAB_SIZE] * num_prompt,
        )

    def _on_end(self, coordinator: Coordinator, completion: Completion) -> None:
        self.ended.append(completion)
        self._ask(coordinator)

    def _report(self, coordinator: Coordinator, seconds: float) -> None:
        def tell() -> None:
            coordinator.hear_reports()
            self.clock.after(REPORT_SECONDS, tell)

        self.clock.after(seconds, tell)

    def _fault(self, fault: FaultAt) -> None:
        """How long coordinators take to see it: a reset comes as fast as any message."""
        notice = {"kill": self.settings.durations.delay_ms / 1000.0, "freeze": SILENCE_SECONDS, "drain": 0.0}
        for worker in (*self.verifiers, *self.drafters):
            if worker.name == fault.worker and fault.fault != "drain":
                worker.device.lose()
        for coordinator in self.coordinators:
            handover = HANDOVER_SECONDS if fault.fault == "drain" else 0.0
            self.clock.after(notice[fault.fault], partial(coordinator.cease, fault.worker, handover))

    def _busy(self) -> list[float]:
        return [
            *(worker.work.busy["verify"] for worker in self.verifiers),
            *(worker.work.busy["draft"] for worker in self.drafters),
            *(coordinator.busy_seconds for coordinator in self.coordinators),
        ]

    def _num_tokens(self) -> int:
        running = (each for coordinator in self.coordinators for each in coordinator.completions.values())
        return sum(each.num_tokens for each in (*self.ended, *running))


def _spread(values: Sequence[float]) -> Mapping[str, float]:
    if not values:
        return {}
    return {"mean": fmean(values)} | (percentiles([(value, 1) for value in values]) or {})


def _range(values: Sequence[float]) -> Mapping[str, float]:
    if not values:
        return {}
    mean = fmean(values)
    return {
        "min": min(values),
        "mean": mean,
        "max": max(values),
        "deviation": math.sqrt(fmean([(value - mean) ** 2 for value in values])),
    }
