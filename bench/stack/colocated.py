"""A verify worker with the draft model in its process: `python -m bench.stack.colocated` takes the flags of the verify
service, `--draft-model` among them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from bench.rivals.fixed_depth import FixedDepth, chains
from bench.rivals.ruled import Policy
from bench.stack.measured_runner import MeasuredRunner
from bench.stack.worker import MeasuredVerifyServicer, follow_drafter, follow_verifier, forget, serve, started
from draft_service.drafter import Drafter
from outrider.core.protocol.messages import ModelInfo
from outrider.core.schedule.draft_depth import DraftDepth
from outrider.core.schedule.policy import DraftPolicy, VerifyPolicy
from outrider.engine.engine import Engine
from outrider.worker.startup import LoadedModel
from verify_service.config import VerifyConfig
from verify_service.drafting_verifier import DraftingVerifier
from verify_service.own_drafter import draft_settings, own_drafter, target_settings


class ColocatedServicer(MeasuredVerifyServicer):
    """The verify service with a drafter of its own, which drafts as production does, or by another rule."""

    _drafter: Drafter
    _draft_runner: MeasuredRunner
    _ways: dict[str, tuple[Policy, DraftDepth]]
    """By the name of a mode: it keeps what it has learned."""

    def own_drafter(self, draft: LoadedModel, target: ModelInfo) -> Drafter:
        """See `VerifyServicer.own_drafter`."""
        self._ways = {}
        self._drafter = own_drafter(draft, target, self._run_drafts)
        return self._drafter

    def runners(self) -> Mapping[str, MeasuredRunner]:
        """See `MeasuredVerifyServicer.runners`."""
        return {**super().runners(), "draft": self._draft_runner}

    def choose(self, mode: dict[str, Any]) -> None:
        """Sessions that open next are of this mode."""
        self._device.submit(partial(self._choose, mode["name"], mode["policy"]))

    def _choose(self, name: str, rule: tuple[str, int] | None) -> None:
        """On the device thread, while no session is there."""
        self.measured.begin(pads=False)
        forget(self._drafter.runner.engine)
        is_new = name not in self._ways
        if is_new and rule is None:
            self._ways[name] = Policy(VerifyPolicy(), DraftPolicy(in_turn=True)), DraftDepth()
        elif is_new and rule is not None:
            _, num_levels = rule
            self._ways[name] = chains(num_levels), FixedDepth(num_levels)
        verifier = self._verifier
        assert isinstance(verifier, DraftingVerifier)
        policy, verifier.depth = self._ways[name]
        follow_verifier(self.policy, policy.verify)
        follow_drafter(self._drafter.scheduler.policy, policy.draft)
        if is_new:
            verifier.relearn()

    def _run_drafts(self, engine: Engine) -> MeasuredRunner:
        self._draft_runner = MeasuredRunner(engine, is_target=False)
        return self._draft_runner


def main() -> None:
    """Parses flags and serves until SIGTERM."""
    telemetry = started("verify")
    config = VerifyConfig.from_command_line("bench.stack.colocated")
    serve("verify", target_settings(config), ColocatedServicer(config, telemetry), telemetry, draft_settings(config))


if __name__ == "__main__":
    main()
