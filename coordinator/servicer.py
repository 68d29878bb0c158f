"""GenerationService on the wire: check the request, run the generation, stream its tokens, say how it went."""

from __future__ import annotations

import time
import uuid
from contextlib import aclosing

from coordinator.completions import run_together
from coordinator.config import CoordinatorConfig
from coordinator.generation import EmittedTokens, Generation
from coordinator.observation import Observation
from coordinator.replica import Replica
from coordinator.request import GenerationRequest, parse
from coordinator.route import Route
from coordinator.text import TextDecoder
from coordinator.workers import Workers
from outrider import PROTOCOL_VERSION, __version__
from outrider.core.coordinate.session import DrafterState
from outrider.core.protocol.errors import ModelMismatchError, QueueFullError
from outrider.core.protocol.messages import TraceContext
from outrider.rpc import wire
from outrider.rpc.status import ServicerContext, rpc_errors
from outrider.telemetry.setup import Telemetry
from outrider.v1 import generation_pb2 as pb
from outrider.v1 import generation_pb2_grpc

_MODES = {
    DrafterState.NONE: pb.GENERATION_MODE_TARGET_ONLY,
    DrafterState.MISSED: pb.GENERATION_MODE_TARGET_ONLY,
    DrafterState.ACTIVE: pb.GENERATION_MODE_SPECULATIVE,
    DrafterState.LOST: pb.GENERATION_MODE_DEGRADED,
}


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """The public service."""

    def __init__(self, config: CoordinatorConfig, workers: Workers, telemetry: Telemetry) -> None:
        self._config = config
        self._telemetry = telemetry
        self._workers = workers
        self._num_running = 0

    @rpc_errors
    async def Generate(self, request: pb.GenerateRequest, context: ServicerContext) -> None:
        """All completions of one prompt; cancelling the call cancels them at both workers."""
        target, tokenizer = self._workers.require_target()
        self._require_room(1)  # before the work of reading the request
        parsed = parse(request, self._config, target, tokenizer)
        self._require_room(parsed.num_completions)
        route = Route(self._workers, parsed, target)
        request_id = uuid.uuid4().hex
        deadline = _deadline(context)
        self._num_running += parsed.num_completions
        try:
            with Observation(self._telemetry, request_id, parsed, target, _caller(context)) as observation:
                generations = [
                    Generation(
                        parsed.completion(number),
                        session_id=f"{request_id}.{number}" if parsed.num_completions > 1 else request_id,
                        target=target,
                        decoder=TextDecoder(tokenizer, parsed.stop, parsed.prompt_token_ids),
                        route=route,
                        max_run_ahead=self._config.max_run_ahead,
                        trace=observation.trace,
                        deadline=deadline,
                    )
                    for number in range(parsed.num_completions)
                ]
                await context.write(_started(request_id, parsed, observation.trace_id))
                async with aclosing(run_together(generations)) as rounds:
                    async for completion, emitted in rounds:
                        if emitted is not None:
                            await context.write(_tokens(completion, emitted))
                            observation.on_round(completion, emitted)
                            continue
                        generation = generations[completion]
                        mode = _MODES[generation.session.drafter]
                        reason = generation.session.drafter_lost_reason
                        observation.on_finish(completion, generation, pb.GenerationMode.Name(mode), reason)
                        await context.write(_finished(completion, generation, mode, reason))
        finally:
            self._num_running -= parsed.num_completions

    @rpc_errors
    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: ServicerContext
    ) -> pb.GetServerInfoResponse:
        """What is served, and whether speculation is possible at present."""
        target, _ = self._workers.require_target()
        try:
            reason = self._workers.draft_problem()
        except ModelMismatchError as mismatch:
            reason = str(mismatch)
        draft = self._workers.draft
        return pb.GetServerInfoResponse(
            version=__version__,
            protocol_version=PROTOCOL_VERSION,
            target=wire.encode_model_info(target),
            draft=wire.encode_model_info(draft) if draft is not None and not reason else None,
            target_only_reason=reason,
            num_running=self._num_running,
            replicas=[_replica(replica, problem) for replica, problem in self._workers],
        )

    def _require_room(self, num_completions: int) -> None:
        if self._num_running + num_completions > self._config.max_requests:
            raise QueueFullError(
                f"{self._num_running} completions are running and {self._config.max_requests} the most allowed; try "
                "again later"
            )


def _replica(replica: Replica, problem: str) -> pb.Replica:
    return pb.Replica(
        address=replica.address,
        service=replica.service,
        serving=not problem,
        problem=problem,
        model=wire.encode_model_info(replica.model) if replica.model is not None else None,
        load=wire.encode_load(replica.load) if replica.load is not None else None,
        num_own_sessions=replica.num_own_sessions,
    )


def _deadline(context: ServicerContext) -> float | None:
    """The caller's deadline on the monotonic clock, if there is one."""
    time_left = context.time_remaining()
    return None if time_left is None else time.monotonic() + time_left


def _caller(context: ServicerContext) -> TraceContext:
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    return TraceContext(metadata.get("traceparent", ""), metadata.get("tracestate", ""))


def _started(request_id: str, request: GenerationRequest, trace_id: str) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        started=pb.GenerateStarted(
            request_id=request_id,
            prompt_token_ids=request.prompt_token_ids,
            seed=request.sampling.seed,
            trace_id=trace_id,
        )
    )


def _tokens(completion: int, emitted: EmittedTokens) -> pb.GenerateResponse:
    emit = emitted.emit
    logprobs = [wire.encode_token_logprobs(entry) for entry in emit.logprobs] or [None] * len(emit.token_ids)
    tokens = [
        pb.GeneratedToken(token_id=token_id, text=text, origin=wire.encode_token_origin(origin), logprobs=entry)
        # A stop string may have ended the text before the round's last token.
        for token_id, text, origin, entry in zip(emit.token_ids, emitted.texts, emit.origins, logprobs, strict=False)
    ]
    return pb.GenerateResponse(
        tokens=pb.GeneratedTokens(
            position=emit.position,
            text="".join(emitted.texts),
            tokens=tokens,
            rolled_back=emit.rolled_back,
            num_draft_tokens=emit.num_draft_tokens,
            completion=completion,
        )
    )


def _finished(completion: int, generation: Generation, mode: pb.GenerationMode, reason: str) -> pb.GenerateResponse:
    session, statistics = generation.session, generation.session.statistics
    assert session.finish_reason is not None
    return pb.GenerateResponse(
        finished=pb.GenerateFinished(
            reason=wire.encode_finish_reason(session.finish_reason),
            mode=mode,
            mode_reason=reason,
            text=generation.final_text,
            usage=pb.Usage(
                num_prompt_tokens=session.line.num_prompt_tokens,
                num_generated_tokens=generation.num_emitted,
                num_cached_prompt_tokens=generation.num_cached_prompt_tokens,
            ),
            speculation=pb.SpeculationStatistics(
                num_rounds=statistics.num_rounds,
                num_draft_tokens=statistics.num_draft_tokens,
                num_accepted_tokens=statistics.num_accepted_tokens,
                num_rollbacks=statistics.num_rollbacks,
                num_drafted_nodes=statistics.num_drafted_nodes,
                num_stale_nodes=statistics.num_stale_nodes,
                acceptance_length=statistics.acceptance_length,
                acceptance_histogram=statistics.acceptance_histogram,
                num_rejections=statistics.num_rejections,
                num_recovered_token_hits=statistics.num_recovered_token_hits,
                num_bonuses=statistics.num_bonuses,
                num_bonus_hits=statistics.num_bonus_hits,
                num_prompt_lookup_tokens=statistics.num_prompt_lookup_tokens,
                num_accepted_prompt_lookup_tokens=statistics.num_accepted_prompt_lookup_tokens,
            ),
            timings=pb.Timings(
                first_token_ms=generation.first_token_ms,
                total_ms=generation.total_ms,
                verify_ms=statistics.verify_ms,
                verify_wait_ms=statistics.verify_wait_ms,
                draft_ms=statistics.draft_ms,
            ),
            completion=completion,
        )
    )
