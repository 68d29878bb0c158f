"""A worker as production runs it, with a log of its steps and with policies of the benchmark's choice.

`python -m bench.stack.worker draft ...` and `python -m bench.stack.worker verify ...` take the flags of the services
themselves.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bench.rivals.ruled import Policy, policy_of
from bench.stack.control import add_control
from bench.stack.measured_runner import MeasuredRunner
from draft_service.config import AUTO, DraftConfig
from draft_service.model_servicer import ModelDraftServicer
from outrider.core.schedule.policy import DraftPolicy, VerifyPolicy
from outrider.engine.device_thread import DeviceThread
from outrider.engine.engine import Engine
from outrider.engine.step_times import measure
from outrider.telemetry.logging import set_up_logging
from outrider.telemetry.setup import Telemetry, set_up
from outrider.v1.draft_pb2_grpc import add_DraftServiceServicer_to_server
from outrider.v1.verify_pb2_grpc import add_VerifyServiceServicer_to_server
from outrider.worker.config import WorkerConfig
from outrider.worker.serving import run
from outrider.worker.startup import LoadedModel
from verify_service.config import VerifyConfig
from verify_service.servicer import VerifyServicer


class Measured:
    """What the benchmark's workers have in common: a runner, and a policy for each mode that was asked for."""

    def __init__(self, *, is_target: bool) -> None:
        self._is_target = is_target
        self.runner: MeasuredRunner
        self._measured: list[tuple[int, float]] = []
        self._step_times: list[tuple[int, float]] = []
        """What a policy knows of the engine's steps when it begins: numbers of tokens and seconds."""
        self._policies: dict[str, Policy] = {}
        self.parallel: tuple[int, int] | None = None
        """The mask token of a parallel draft model, and the places that a pass may propose for."""

    def run(self, engine: Engine) -> MeasuredRunner:
        """What is to run the steps of the worker over `engine`."""
        self._measured = self._step_times = measure(engine)
        self.runner = MeasuredRunner(engine, is_target=self._is_target)
        return self.runner

    def begin(self, *, pads: bool) -> None:
        """On the device thread, while no session is there: the next mode begins, and finds nothing of what others have
        read."""
        self.runner.padding.use(pads)
        forget(self.runner.engine)

    def policy(self, mode: dict[str, Any]) -> Policy:
        """The policy of a mode: always the same one for its name, so that it keeps what it has learned. Others' rules
        are made for one place a pass, whatever the draft model can do."""
        name = mode["name"]
        if name not in self._policies:
            policy = policy_of(mode["policy"])
            if self.parallel is not None and not policy.draft.sends_at_once:
                policy.draft.draft_in_parallel(*self.parallel)
            for estimates in (policy.verify.estimates, policy.draft.estimates):
                estimates.curve.restart(self._step_times)
            self._policies[name] = policy
        return self._policies[name]

    def force(self, settings: dict[str, Any] | None) -> None:
        """See `Forcing.force`. What was learned before is forgotten."""
        self.runner.forcing.force(settings)
        self._step_times = [(1, settings["step_ms"] / 1000.0)] if settings is not None else self._measured
        self._policies.clear()


def forget(engine: Engine) -> None:
    """On the device thread, while no session is there: nothing of what was read is found again."""
    blocks = engine.blocks
    blocks.release([blocks.take() for _ in range(blocks.num_available)])


class MeasuredDraftServicer(ModelDraftServicer):
    """The draft service with a log and a choice of policies."""

    def __init__(self, telemetry: Telemetry, parallel: str = AUTO) -> None:
        self.policy = DraftPolicy()
        self.measured = Measured(is_target=False)
        super().__init__(telemetry, self.policy, parallel, runner=self.measured.run)

    def begin(self, loaded: LoadedModel, on_death: Callable[[BaseException], None]) -> DeviceThread:
        """See `ModelDraftServicer.begin`."""
        device = super().begin(loaded, on_death)
        if self.policy.mask_token_id is not None:
            self.measured.parallel = self.policy.mask_token_id, self.policy.estimates.num_positions
        return device

    def runners(self) -> Mapping[str, MeasuredRunner]:
        """What runs steps, by the kind of worker whose they are."""
        return {"draft": self.measured.runner}

    def choose(self, mode: dict[str, Any]) -> None:
        """Sessions that open next are of this mode."""
        follow_drafter(self.policy, self.measured.policy(mode).draft)
        self._device.submit(partial(self.measured.begin, pads=False))


def follow_drafter(own: DraftPolicy, other: DraftPolicy) -> None:
    """Has the drafter whose policy is `own` decide by the `other` one."""
    own.estimates, own.opening, own.expands = other.estimates, other.opening, other.expands
    own.sends_at_once, own.rhythm = other.sends_at_once, other.rhythm


def follow_verifier(own: VerifyPolicy, other: VerifyPolicy) -> None:
    """The same for a verifier."""
    own.estimates, own.looks_up = other.estimates, other.looks_up
    own.rounds, own.select, own.own_guessing = other.rounds, other.select, other.own_guessing


class MeasuredVerifyServicer(VerifyServicer):
    """The verify service with the same."""

    def __init__(self, config: VerifyConfig, telemetry: Telemetry) -> None:
        self.policy = VerifyPolicy()
        self.measured = Measured(is_target=True)
        super().__init__(config, telemetry, self.policy, runner=self.measured.run)

    def runners(self) -> Mapping[str, MeasuredRunner]:
        """What runs steps, by the kind of worker whose they are."""
        return {"verify": self.measured.runner}

    def choose(self, mode: dict[str, Any]) -> None:
        """Sessions that open next are of this mode."""
        policy = self.measured.policy(mode)
        follow_verifier(self.policy, policy.verify)
        self._device.submit(partial(self.measured.begin, pads=policy.pads))


def serve(
    kind: str,
    config: WorkerConfig,
    servicer: MeasuredDraftServicer | MeasuredVerifyServicer,
    telemetry: Telemetry,
    beside: WorkerConfig | None = None,
) -> None:
    """Serves until SIGTERM, with another model `beside` if the servicer takes one."""
    name, add_service = _SERVICES[kind]
    methods = {
        "Choose": servicer.choose,
        "Force": servicer.measured.force,
        "Take": lambda _: {kind: runner.log.take() for kind, runner in servicer.runners().items()},
    }

    def add(servicer: Any, server: Any) -> None:
        add_service(servicer, server)
        add_control(server, methods)

    try:
        run(config, name, add, servicer, telemetry.instruments, beside=beside)
    finally:
        telemetry.shut_down()


_SERVICES: Mapping[str, tuple[str, Callable[[Any, Any], None]]] = {
    "draft": ("outrider.v1.DraftService", add_DraftServiceServicer_to_server),
    "verify": ("outrider.v1.VerifyService", add_VerifyServiceServicer_to_server),
}


def started(kind: str) -> Telemetry:
    """Logging and telemetry of a worker of that kind."""
    set_up_logging(kind, json=not sys.stderr.isatty())
    return set_up(f"outrider-{kind}", environ=os.environ)


def main() -> None:
    """Parses flags and serves until SIGTERM."""
    kind = sys.argv.pop(1)
    telemetry = started(kind)
    if kind == "draft":
        config = DraftConfig.from_command_line(_COMMAND.format(kind))
        serve(kind, config, MeasuredDraftServicer(telemetry, config.parallel), telemetry)
    else:
        config = VerifyConfig.from_command_line(_COMMAND.format(kind))
        serve(kind, config, MeasuredVerifyServicer(config, telemetry), telemetry)


_COMMAND = "bench.stack.worker {}"


if __name__ == "__main__":
    main()
