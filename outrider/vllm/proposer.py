"""vLLM's door: the class that `--speculative-config '{"method": "custom_class", ...}'` names."""

from __future__ import annotations

import atexit
import concurrent.futures
import time
from collections.abc import Sequence
from typing import Any, Protocol

import structlog

from outrider.telemetry.logging import set_up_logging_beside
from outrider.vllm.config import PoolConfig
from outrider.vllm.drafting import Drafting, RowStep
from outrider.vllm.limits import Limits
from outrider.vllm.loop_thread import LoopThread
from outrider.vllm.matcher import Matcher, Row
from outrider.vllm.pool import DraftPool
from outrider.vllm.target import ModelConfig, target_info

THREAD_NAME = "outrider-drafting"
"""Of the thread that all streams to drafters belong to."""

FIRST_ANSWER_SECONDS = 10.0
"""Longest that vLLM's start waits for drafters to answer, so that the first request has one."""

HANDOVER_SECONDS = 0.1
"""Longest that a step waits for the drafting thread beside what it may wait for drafts: it takes a fraction of a
millisecond where the machine lets that thread run."""

_log = structlog.get_logger()


class ParallelConfig(Protocol):
    """What is read of vLLM's `ParallelConfig`."""

    rank: int
    tensor_parallel_size: int


class SpeculativeConfig(Protocol):
    """What is read of vLLM's `SpeculativeConfig`."""

    num_speculative_tokens: int


class VllmConfig(Protocol):
    """What is read of vLLM's `VllmConfig`."""

    @property
    def model_config(self) -> ModelConfig: ...

    @property
    def parallel_config(self) -> ParallelConfig: ...

    @property
    def speculative_config(self) -> SpeculativeConfig: ...


class TokenIds(Protocol):
    """A matrix of token ids, one row for each request: numpy's `[max_num_reqs, max_model_len] int32`."""

    def __getitem__(self, index: tuple[int, slice], /) -> Any: ...


class RemoteProposer:
    """Proposes what drafters elsewhere, which run ahead while vLLM computes, hold for each row of a batch.

    vLLM decides every token, so what is proposed changes its speed and nothing else.
    """

    def __init__(self, vllm_config: VllmConfig) -> None:
        """Finds drafters by the OUTRIDER_* variables of `PoolConfig`. Raises BadSettingsError if they cannot be, and
        UnsupportedModelError if the target cannot be compared with a drafter."""
        set_up_logging_beside("vllm")
        config = PoolConfig.checked()
        parallel = vllm_config.parallel_config
        self._matcher = Matcher()
        self._wait_seconds = config.vllm_wait_ms / 1000.0
        self._stepped_at: float | None = None
        """When the last step was answered."""
        self._thread: LoopThread | None = None
        # vLLM has every rank propose, and asks the first one of a tensor-parallel group for what it has proposed.
        if parallel.rank % parallel.tensor_parallel_size == 0:
            target = target_info(vllm_config.model_config)
            limits = Limits(
                vocab_size=target.vocab_size,
                max_length=target.max_context,
                num_speculative_tokens=vllm_config.speculative_config.num_speculative_tokens,
                tree_width=config.tree_width,
            )
            self._pool = DraftPool(config, target)
            self._drafting = Drafting(self._pool, limits, config.vllm_keep_seconds)
            self._thread = LoopThread(THREAD_NAME)
            self._thread.hand(self._start())
            atexit.register(self.close)

    def load_model(self, *_: Any) -> None:
        """vLLM calls it where other proposers load a model. Waits until drafters have answered, but not for ever."""
        if self._thread is not None:
            concurrent.futures.wait([self._thread.hand(self._pool.answered())], FIRST_ANSWER_SECONDS)

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: Sequence[int],
        token_ids_cpu: TokenIds,
        slot_mappings: object = None,
    ) -> list[list[int]]:
        """A chain of draft tokens for each row, after a step that decided `sampled_token_ids`: none for a prompt.

        `num_tokens_no_spec` are the lines' lengths with these, and `token_ids_cpu` the lines. Returns after the wait
        that is configured and HANDOVER_SECONDS at the latest, and never raises: an error would end all of vLLM.
        """
        if self._thread is None:
            return [[] for _ in sampled_token_ids]
        try:
            return self._propose(self._thread, sampled_token_ids, num_tokens_no_spec, token_ids_cpu)
        except Exception:
            _log.exception("no drafts for a step")
            return [[] for _ in sampled_token_ids]
        finally:
            self._stepped_at = time.monotonic()

    def close(self) -> None:
        """Gives up all lines and leaves all drafters. Calling it twice is harmless."""
        if self._thread is not None:
            self._thread.stop_with(self._stop())
            self._thread = None
            atexit.unregister(self.close)

    def _propose(
        self,
        thread: LoopThread,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: Sequence[int],
        token_ids_cpu: TokenIds,
    ) -> list[list[int]]:
        step_ms = 0.0 if self._stepped_at is None else (time.monotonic() - self._stepped_at) * 1000.0
        closed = self._drafting.closed
        self._matcher.forget([closed.popleft() for _ in range(len(closed))])
        rows = [
            Row(
                lambda start, end, index=index: token_ids_cpu[index, slice(start, end)].tobytes(),
                int(num_tokens_no_spec[index]),
                len(token_ids),
            )
            for index, token_ids in enumerate(sampled_token_ids)
        ]
        steps = [
            RowStep(
                match.number,
                token_ids_cpu[index, slice(0, row.num_tokens)].tolist() if match.is_new else None,
                sampled_token_ids[index],
            )
            for index, (row, match) in enumerate(zip(rows, self._matcher.match(rows), strict=True))
        ]
        drafts = thread.hand(self._drafting.step(steps, step_ms, self._wait_seconds))
        try:
            return drafts.result(self._wait_seconds + HANDOVER_SECONDS)
        except TimeoutError:
            _log.warning("the drafting thread does not get to run; no drafts for a step")
            return [[] for _ in sampled_token_ids]

    async def _start(self) -> None:
        self._pool.start()

    async def _stop(self) -> None:
        await self._drafting.close()
        await self._pool.stop()
