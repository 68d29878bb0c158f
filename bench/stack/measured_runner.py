"""What runs a measured worker's steps: as production does, with a log, and with passes forced or padded on demand."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bench.rivals.padding import Padding
from bench.stack.forced import Forcing
from bench.stack.step_log import StepLog, StepSize
from outrider.core.schedule.draft_run import Level
from outrider.engine.engine import Engine, Ticket
from outrider.engine.jobs import Job
from outrider.worker.step_runner import StepRunner


class MeasuredRunner(StepRunner):
    """Device thread only, but for `log` and `forcing`."""

    def __init__(self, engine: Engine, *, is_target: bool) -> None:
        super().__init__(engine)
        self.log = StepLog()
        self.forcing = Forcing(is_target=is_target)
        self.padding = Padding(engine.model)

    def launch(self, jobs: Sequence[Job], max_line_tokens: int) -> Ticket:
        """See `StepRunner.launch`. What is forced is chosen from the logits."""
        started = time.monotonic_ns()
        if self.forcing.is_active:
            jobs = [job._replace(num_choices=0) for job in jobs]
        ticket = super().launch(jobs, max_line_tokens)
        output = ticket.output
        self.forcing.apply(jobs, output, started / 1e9)
        num_rows = sum(number or 0 for number in output.num_rows)
        self.log.add_pass(started, StepSize(len(jobs), num_rows, self.padding.num_tokens))
        return ticket

    @property
    def runs_levels(self) -> bool:
        """See `StepRunner.runs_levels`. What is forced is forced step by step."""
        return super().runs_levels and not self.forcing.is_active

    def observe_levels(self, started: float, levels: Sequence[Level], num_sessions: int) -> None:
        """See `StepRunner.observe_levels`. Each level counts as a pass, which the levels before it precede."""
        begun = round(started * 1e9)
        self.log.add_step(begun)
        for level in levels:
            ended = begun + round(level.seconds * 1e9)
            self.log.add_pass(begun, StepSize(num_sessions, level.num_nodes, 0), ended)
            begun = ended
        super().observe_levels(started, levels, num_sessions)

    def observe(self, started: float) -> None:
        """See `StepRunner.observe`."""
        self.log.add_step(round(started * 1e9))
        super().observe(started)
