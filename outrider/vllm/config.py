"""Settings of vLLM's draft pool, which has no flags: vLLM has its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pydantic import Field, field_validator

from coordinator.config import CoordinatorConfig
from coordinator.resolution import parse_endpoints
from outrider.core.protocol.validation import TREE_WIDTH_MAX
from outrider.rpc.environment import GRPC_ENVIRONMENT
from outrider.settings import NAME_PATTERN, CheckedSettings, Problem

# Before what follows imports grpc.
os.environ |= GRPC_ENVIRONMENT | os.environ

WAIT_MS_MAX = 1000.0
"""Longest wait that may be configured: a step of a large target takes a tenth of it."""

_OF_COORDINATOR = CoordinatorConfig.model_fields


class PoolConfig(CheckedSettings):
    """What vLLM's proposer is told."""

    draft: str = Field(
        _OF_COORDINATOR["draft"].default,
        description="draft services, of one model or several: host:port or dns:///name:port, several with commas",
    )
    tls_cert: str = Field("", description=_OF_COORDINATOR["tls_cert"].description)
    tls_key: str = Field("", description=_OF_COORDINATOR["tls_key"].description)
    tls_ca: str = Field("", description=_OF_COORDINATOR["tls_ca"].description)
    tls_draft_name: str = Field(
        _OF_COORDINATOR["tls_draft_name"].default,
        pattern=NAME_PATTERN,
        description=_OF_COORDINATOR["tls_draft_name"].description,
    )
    tree_width: int = Field(0, ge=0, le=TREE_WIDTH_MAX, description=_OF_COORDINATOR["tree_width"].description)
    silence_seconds: float = Field(
        _OF_COORDINATOR["silence_seconds"].default,
        ge=0.1,
        description="a draft service that neither answers nor gets on for so long is left for another one",
    )
    vllm_wait_ms: float = Field(
        2.0,
        ge=0.0,
        le=WAIT_MS_MAX,
        description="longest that a step of vLLM waits for the drafts of lines for which nothing is at hand",
    )
    vllm_keep_seconds: float = Field(
        1.0, ge=0.0, description="a line that vLLM's steps leave out for so long is given up: its request is over"
    )

    def problems(self) -> Iterator[Problem]:
        """See `CheckedSettings`."""
        yield from self._certificates()

    @field_validator("draft")
    @classmethod
    def _check_endpoints(cls, text: str) -> str:
        if not parse_endpoints(text):
            raise ValueError("name at least one draft service")
        return text
