"""A coordinator that answers each request with the same events, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from outrider.core.protocol.messages import ModelInfo, WorkerLoad
from outrider.rpc import wire
from outrider.rpc.server import Server, Service
from outrider.rpc.status import ServicerContext, rpc_errors
from outrider.v1 import common_pb2, generation_pb2_grpc
from outrider.v1 import generation_pb2 as pb

TARGET = ModelInfo("big", "llama", 4096, "ab" * 32, (0,), 512, 8, 12_200_000, "float32", "cpu", 1, "one")
LOAD = WorkerLoad("one", 4, 1, 600, 65_536, 60_000, 12.5, 900, 300)
DRAFT = TARGET._replace(name="small", num_parameters=1_000_000, instance_id="two")


def started(seed: int = 7, *, batch_invariant: bool = False) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        started=pb.GenerateStarted(
            request_id="r1", prompt_token_ids=[5, 6], seed=seed, trace_id="f" * 32, batch_invariant=batch_invariant
        )
    )


def tokens(
    position: int,
    *parts: tuple[int, str, pb.TokenOrigin],
    rolled_back: bool = False,
    logprobs: Sequence[common_pb2.TokenLogprobs] = (),
    completion: int = 0,
) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        tokens=pb.GeneratedTokens(
            position=position,
            text="".join(text for _, text, _ in parts),
            tokens=[
                pb.GeneratedToken(
                    token_id=token_id, text=text, origin=origin, logprobs=logprobs[index] if logprobs else None
                )
                for index, (token_id, text, origin) in enumerate(parts)
            ],
            rolled_back=rolled_back,
            num_draft_tokens=2,
            completion=completion,
        )
    )


def finished(
    num_tokens: int = 6, *, total_ms: float = 500.0, text: str = "!", completion: int = 0
) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        finished=pb.GenerateFinished(
            reason=common_pb2.FINISH_REASON_LENGTH,
            mode=pb.GENERATION_MODE_DEGRADED,
            mode_reason="the drafter left",
            text=text,
            usage=pb.Usage(num_prompt_tokens=2, num_generated_tokens=num_tokens, num_cached_prompt_tokens=1),
            speculation=pb.SpeculationStatistics(
                num_rounds=3,
                num_draft_tokens=8,
                num_accepted_tokens=2,
                num_rollbacks=1,
                num_drafted_nodes=9,
                num_stale_nodes=4,
                acceptance_length=2.0,
                acceptance_histogram=[1, 2],
                num_rejections=2,
                num_recovered_token_hits=1,
                num_bonuses=1,
                num_bonus_hits=0,
                num_prompt_lookup_tokens=5,
                num_accepted_prompt_lookup_tokens=1,
            ),
            timings=pb.Timings(
                first_token_ms=40.0, total_ms=total_ms, verify_ms=300.0, verify_wait_ms=20.0, draft_ms=100.0
            ),
            completion=completion,
        )
    )


ROUNDS = (
    started(),
    tokens(2, (10, "def ", pb.TOKEN_ORIGIN_TARGET)),
    tokens(3, (11, "walk", pb.TOKEN_ORIGIN_ACCEPTED), (12, "(", pb.TOKEN_ORIGIN_BONUS)),
    tokens(
        5,
        (13, "top", pb.TOKEN_ORIGIN_ACCEPTED),
        (14, ")", pb.TOKEN_ORIGIN_ACCEPTED),
        (15, ":\n", pb.TOKEN_ORIGIN_RECOVERED),
        rolled_back=True,
    ),
    finished(),
)
"""One generation with every origin and a rollback."""

TEXT = "def walk(top):\n!"
"""What ROUNDS say."""

TWO = (
    started(2**64 - 1),
    tokens(2, (20, "first", pb.TOKEN_ORIGIN_TARGET)),
    tokens(2, (30, "second", pb.TOKEN_ORIGIN_TARGET), completion=1),
    tokens(3, (31, " ends", pb.TOKEN_ORIGIN_ACCEPTED), (32, " early", pb.TOKEN_ORIGIN_BONUS), completion=1),
    finished(3, total_ms=300.0, completion=1),
    tokens(3, (21, " ends", pb.TOKEN_ORIGIN_BONUS)),
    finished(2, text=""),
)
"""Two completions; the second ends before the first. Their seeds are the last one and 0."""


class ScriptedCoordinator(generation_pb2_grpc.GenerationServiceServicer):
    """Sends `script`; an exception in it ends the call, `Ellipsis` waits until the caller has left."""

    def __init__(self, script: Sequence[object] = ROUNDS) -> None:
        self.script = script
        self.requests: list[pb.GenerateRequest] = []
        self.left = asyncio.Event()
        self.draft: ModelInfo | None = DRAFT

    @rpc_errors
    async def Generate(self, request: pb.GenerateRequest, context: ServicerContext) -> None:
        self.requests.append(request)
        try:
            for item in self.script:
                if isinstance(item, Exception):
                    raise item
                if item is ...:
                    await asyncio.Event().wait()
                await context.write(item)
        except asyncio.CancelledError:  # wherever in the script the caller leaves
            self.left.set()
            raise

    @rpc_errors
    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: ServicerContext
    ) -> pb.GetServerInfoResponse:
        return pb.GetServerInfoResponse(
            version="1.2.3",
            protocol_version=1,
            target=wire.encode_model_info(TARGET),
            draft=wire.encode_model_info(self.draft) if self.draft is not None else None,
            target_only_reason="" if self.draft is not None else "no drafter",
            num_running=3,
            replicas=[
                pb.Replica(
                    address="10.0.0.1:50052",
                    service="outrider.v1.VerifyService",
                    serving=True,
                    model=wire.encode_model_info(TARGET),
                    load=wire.encode_load(LOAD),
                    num_own_sessions=3,
                ),
                pb.Replica(address="10.0.0.2:50051", service="outrider.v1.DraftService", problem="cannot be reached"),
            ],
        )


@asynccontextmanager
async def serving(coordinator: ScriptedCoordinator) -> AsyncIterator[str]:
    """The address at which it is served."""
    server = Server(
        Service(
            "outrider.v1.GenerationService",
            generation_pb2_grpc.add_GenerationServiceServicer_to_server,
            coordinator,
        )
    )
    port = await server.start("127.0.0.1:0")
    server.set_ready(True)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
