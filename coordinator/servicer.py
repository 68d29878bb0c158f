"""GenerationService on the wire: check the request, run the generation, stream its tokens, say how it went."""

from __future__ import annotations

import uuid
from contextlib import aclosing

from coordinator.config import CoordinatorConfig
from coordinator.generation import EmittedTokens, Generation
from coordinator.observation import Observation
from coordinator.request import GenerationRequest, parse
from coordinator.text import TextDecoder
from coordinator.workers import Workers
from outrider import PROTOCOL_VERSION, __version__
from outrider.core.errors import ModelMismatchError, QueueFullError
from outrider.core.messages import TraceContext
from outrider.core.session import DrafterState
from outrider.rpc import wire
from outrider.rpc.status import ServicerContext, rpc_errors
from outrider.telemetry.setup import Telemetry
from outrider.v1 import generation_pb2 as pb
from outrider.v1 import generation_pb2_grpc

_MODES = {
    DrafterState.NONE: pb.GENERATION_MODE_TARGET_ONLY,
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
        """One generation; cancelling the call cancels it at both workers."""
        target, tokenizer = self._workers.require_target()
        if self._num_running >= self._config.max_requests:
            raise QueueFullError(f"{self._num_running} generations are running, the most allowed; try again later")
        parsed = parse(request, self._config, target, tokenizer)
        no_drafter = self._workers.draft_problem() if parsed.speculate else ""
        drafting = parsed.speculate and not no_drafter
        request_id = uuid.uuid4().hex
        self._num_running += 1
        try:
            draft = self._workers.draft if drafting else None
            with Observation(self._telemetry, request_id, parsed, target, draft, _caller(context)) as observation:
                generation = Generation(
                    parsed,
                    request_id=request_id,
                    target=target,
                    decoder=TextDecoder(tokenizer, parsed.stop),
                    verify_channel=self._workers.verify_channel,
                    draft_channel=self._workers.draft_channel if drafting else None,
                    max_run_ahead=self._config.max_run_ahead,
                    trace=observation.trace,
                )
                await context.write(_started(request_id, parsed, observation.trace_id))
                async with aclosing(generation.run()) as rounds:
                    async for emitted in rounds:
                        await context.write(_tokens(emitted))
                        observation.on_round(emitted)
                mode, reason = _MODES[generation.session.drafter], generation.session.drafter_lost_reason or no_drafter
                observation.on_finish(generation, pb.GenerationMode.Name(mode), reason)
                await context.write(_finished(generation, mode, reason))
        finally:
            self._num_running -= 1

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
        )


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


def _tokens(emitted: EmittedTokens) -> pb.GenerateResponse:
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
        )
    )


def _finished(generation: Generation, mode: pb.GenerationMode, reason: str) -> pb.GenerateResponse:
    session, statistics = generation.session, generation.session.statistics
    assert session.finish_reason is not None
    return pb.GenerateResponse(
        finished=pb.GenerateFinished(
            reason=wire.encode_finish_reason(session.finish_reason),
            mode=mode,
            mode_reason=reason,
            text=generation.final_text,
            usage=pb.Usage(
                num_prompt_tokens=session.line.num_prompt_tokens, num_generated_tokens=generation.num_emitted
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
                num_outcome_hits=statistics.num_outcome_hits,
                num_bonuses=statistics.num_bonuses,
                num_bonus_hits=statistics.num_bonus_hits,
            ),
            timings=pb.Timings(
                first_token_ms=generation.first_token_ms,
                total_ms=generation.total_ms,
                verify_ms=statistics.verify_ms,
                verify_wait_ms=statistics.verify_wait_ms,
                draft_ms=statistics.draft_ms,
            ),
        )
    )
