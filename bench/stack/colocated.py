"""A verify worker with the draft model in its process: `python -m bench.stack.colocated DRAFT ...`, where DRAFT is its
folder, and what follows are the flags of the verify service."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bench.rivals.colocated import ColocatedVerifier
from bench.stack.measured_runner import MeasuredRunner
from bench.stack.worker import MeasuredVerifyServicer, follow_drafter, forget, serve, started
from draft_service.config import DraftConfig
from draft_service.drafter import Drafter
from outrider.core.schedule.policy import DraftPolicy
from outrider.engine.device_thread import DeviceThread
from outrider.engine.engine import Engine
from outrider.telemetry.setup import Telemetry
from outrider.worker.config import WorkerConfig
from outrider.worker.serving import loaded_model
from outrider.worker.startup import LoadedModel
from verify_service.config import VerifyConfig


class ColocatedServicer(MeasuredVerifyServicer):
    """The verify service, its verifier with a drafter of its own."""

    def __init__(self, config: VerifyConfig, telemetry: Telemetry, draft: Engine) -> None:
        super().__init__(config, telemetry)
        self._draft = draft
        self._draft_policy = DraftPolicy()
        self._colocated: ColocatedVerifier
        self._draft_runner: MeasuredRunner

    def begin(self, loaded: LoadedModel, on_death: Callable[[BaseException], None]) -> DeviceThread:
        """See `WorkerServicer.begin`."""
        self._verifier = self._colocated = ColocatedVerifier(
            loaded.engine,
            loaded.info.eos_token_ids,
            Drafter(self._draft, self._draft_policy, self._run_drafts),
            max_queue=self._config.max_queue,
            policy=self.policy,
            runner=self.measured.run,
        )
        return self._take_over(loaded, self._verifier, on_death)

    def runners(self) -> Mapping[str, MeasuredRunner]:
        """See `MeasuredVerifyServicer.runners`."""
        return {**super().runners(), "draft": self._draft_runner}

    def choose(self, mode: dict[str, Any]) -> None:
        """Sessions that open next are of this mode, whose rule drafts as many levels as its parameter says."""
        super().choose(mode)
        follow_drafter(self._draft_policy, self.measured.policy(mode).draft)
        _, self._colocated.num_levels = mode["policy"]
        self._device.submit(partial(forget, self._draft))

    def _run_drafts(self, engine: Engine) -> MeasuredRunner:
        self._draft_runner = MeasuredRunner(engine, is_target=False)
        return self._draft_runner


def main() -> None:
    """Loads the draft model, then serves until SIGTERM."""
    draft = sys.argv.pop(1)
    telemetry = started("verify")
    config = VerifyConfig.from_command_line("bench.stack.colocated")
    if config.cores:
        os.sched_setaffinity(0, {int(core) for core in config.cores.split(",")})  # before any thread starts
    settings = config.model_dump(include=WorkerConfig.model_fields.keys() - {"model", "ngram_table"})
    loaded = asyncio.run(loaded_model(DraftConfig.model_validate(settings | {"model": draft})))
    serve("verify", config, ColocatedServicer(config, telemetry, loaded.engine), telemetry)


if __name__ == "__main__":
    main()
