"""The coordinator's service in plain values: gRPC is one door to it, and others may be built beside that."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

from coordinator.admission import Admission
from coordinator.completions import run_together
from coordinator.config import CoordinatorConfig
from coordinator.generation import Generation
from coordinator.grpc_links import GrpcLinks
from coordinator.observation import Observation
from coordinator.request import settle
from coordinator.route import Route
from coordinator.text import TextDecoder
from coordinator.workers import Workers
from outrider import PROTOCOL_VERSION, __version__
from outrider.core.coordinate.events import Event, Started
from outrider.core.coordinate.server_info import Replica, ServerInfo
from outrider.core.protocol.messages import NOT_TRACED, TraceContext
from outrider.core.protocol.options import DEFAULT_OPTIONS, GenerationOptions, Prompt
from outrider.telemetry.setup import Telemetry


class GenerationService:
    """Generates. Every request is checked, counted against the limit, and observed here, by whichever door it came."""

    def __init__(self, config: CoordinatorConfig, workers: Workers, telemetry: Telemetry) -> None:
        self._config = config
        self._workers = workers
        self._telemetry = telemetry
        self._admission = Admission(config.max_requests)

    async def generate(
        self,
        prompt: Prompt,
        options: GenerationOptions = DEFAULT_OPTIONS,
        *,
        caller: TraceContext = NOT_TRACED,
        deadline: float | None = None,
    ) -> AsyncGenerator[Event]:
        """Yields Started, then Tokens for each round of each completion, mixed, and Finished as each of them ends.

        The trace continues the `caller`'s, if there is one. `deadline` is the caller's on the monotonic clock: the
        verifier puts sessions that have less time first; to end the iteration by then is up to the caller. Closing the
        iterator (`contextlib.aclosing`) cancels the request at both workers.

        Raises InvalidRequestError with everything that is wrong with the request, QueueFullError if too much runs, and
        other OutriderErrors where it cannot be served.
        """
        target, tokenizer = self._workers.require_target()
        self._admission.require_room(1)  # before the work of tokenizing
        request = settle(prompt, options, self._config, target, tokenizer)
        with self._admission.admitted(request.num_completions):
            links = GrpcLinks(Route(self._workers, request, target))
            request_id = uuid.uuid4().hex
            with Observation(self._telemetry, request_id, request, target, caller) as observation:
                generations = [
                    Generation(
                        request.completion(number),
                        session_id=f"{request_id}.{number}" if request.num_completions > 1 else request_id,
                        target=target,
                        decoder=TextDecoder(tokenizer, request.stop, request.prompt_token_ids),
                        links=links,
                        max_run_ahead=self._config.max_run_ahead,
                        trace=observation.trace,
                        deadline=deadline,
                    )
                    for number in range(request.num_completions)
                ]
                yield Started(
                    request_id,
                    tuple(request.prompt_token_ids),
                    request.sampling.seed,
                    observation.trace_id,
                    target.batch_invariant,
                )
                async with aclosing(run_together(generations)) as rounds:
                    async for completion, emitted in rounds:
                        if emitted is not None:
                            yield emitted.tokens(completion)
                            observation.on_round(completion, emitted)
                        else:
                            generation = generations[completion]
                            finished = generation.finished(completion)
                            observation.on_finish(finished, generation.session.statistics, generation.draft_model)
                            yield finished

    def server_info(self) -> ServerInfo:
        """What is served, and whether speculation is possible at present. Raises WorkerUnavailableError."""
        target, _ = self._workers.require_target()
        refusal = self._workers.drafter_refusal()
        return ServerInfo(
            version=__version__,
            protocol_version=PROTOCOL_VERSION,
            target=target,
            draft=self._workers.draft if refusal is None else None,
            target_only_reason="" if refusal is None else refusal.text,
            num_running=self._admission.num_running,
            replicas=tuple(
                Replica(
                    address=replica.address,
                    service=replica.service,
                    serving=refusal is None,
                    problem="" if refusal is None else refusal.text,
                    model=replica.model,
                    load=replica.load,
                    num_own_sessions=replica.num_own_sessions,
                )
                for replica, refusal in self._workers
            ),
        )
