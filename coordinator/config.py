"""Settings of the coordinator."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field, field_validator

from coordinator.chat.families import AUTO, TOOL_CALL_PARSERS
from coordinator.resolution import parse_endpoints
from outrider.core.coordinate.liveness import ALONE_SECONDS, SILENCE_SECONDS
from outrider.core.protocol.identity import DRAFTER_NAME, VERIFIER_NAME
from outrider.core.protocol.validation import AUTOMATIC_WIDTH_MAX, DRAFT_TOKENS_MAX, RUN_AHEAD_MAX, TREE_WIDTH_MAX
from outrider.settings import (
    CORES_DESCRIPTION,
    CORES_PATTERN,
    DRAIN_SECONDS_MAX,
    NAME_PATTERN,
    VLLM_METRICS_DESCRIPTION,
    Problem,
    Settings,
)


class CoordinatorConfig(Settings):
    """What the coordinator is told."""

    listen: str = Field("127.0.0.1:50050", description="host:port to serve on")
    http: str = Field(
        "127.0.0.1:8080",
        description="host:port of the OpenAI-compatible HTTP interface; empty turns it off",
    )
    tls_client_ca: str = Field(
        "",
        description="file in PEM of the authority of clients' certificates; with it nobody without one can connect, by "
        "gRPC or HTTP",
    )
    tls_verify_name: str = Field(
        VERIFIER_NAME, pattern=NAME_PATTERN, description="with --tls-ca: name that a verify service's certificate has"
    )
    tls_draft_name: str = Field(
        DRAFTER_NAME, pattern=NAME_PATTERN, description="with --tls-ca: name that a draft service's certificate has"
    )
    tokens: str = Field(
        "",
        description="file of those who may ask (`outrider tokens add` writes it), read again when it changes; with it "
        "whoever has no token of it is refused, by gRPC and HTTP",
    )
    share_prefix_cache: bool = Field(
        False,
        description="with --tokens: let requests of one token find in workers' caches what those of another have read; "
        "it is faster, and tells by its time what others have asked",
    )
    verify: str = Field(
        "127.0.0.1:50052",
        description="verify services of one target: host:port or dns:///name:port, several with commas; a name stands "
        "for all of its addresses",
    )
    draft: str = Field(
        "127.0.0.1:50051", description="draft services, of one model or several; empty to run by the target alone"
    )
    tree_width: int = Field(
        0, ge=0, le=TREE_WIDTH_MAX, description="children per drafted node; 1 drafts a chain, 0 as many as are worth it"
    )
    max_run_ahead: int = Field(
        RUN_AHEAD_MAX,
        ge=AUTOMATIC_WIDTH_MAX,
        le=RUN_AHEAD_MAX,
        description="most draft nodes beyond the last committed token",
    )
    max_draft_tokens: int = Field(
        15, ge=0, le=DRAFT_TOKENS_MAX, description="most draft tokens that one round verifies; fewer where that pays"
    )
    adaptive_speculation: bool = Field(
        True, description="let the target decode alone while that serves the present load sooner"
    )
    tool_call_parser: str = Field(
        AUTO,
        pattern="|".join(f"^{name}$" for name in (AUTO, *TOOL_CALL_PARSERS)),
        description=f"how the target writes tool calls: {', '.join(TOOL_CALL_PARSERS)}, or auto: as its chat template "
        "tells",
    )
    vllm_metrics: bool = Field(False, description=VLLM_METRICS_DESCRIPTION)
    max_requests: int = Field(64, ge=1, le=4096, description="most completions at a time; more are refused")
    unread_seconds: float = Field(
        30.0,
        gt=0,
        description="an answer of which its client takes nothing for so long is ended, and its workers are freed",
    )
    max_request_seconds: float = Field(3600.0, gt=0, description="longest life of a request")
    max_requests_per_client: int = Field(
        4096,
        ge=1,
        le=4096,
        description="most requests at a time from one address, by gRPC and as many by HTTP; more are refused",
    )
    silence_seconds: float = Field(
        SILENCE_SECONDS,
        ge=0.1,
        description="a worker that neither answers nor gets on for so long is left for another one; a verifier that no "
        f"other can stand in for, after {ALONE_SECONDS:g} s or more",
    )
    cores: str = Field("", pattern=CORES_PATTERN, description=CORES_DESCRIPTION)
    drain_seconds: float = Field(
        20.0, ge=0, le=DRAIN_SECONDS_MAX, description="after SIGTERM: time that running generations get to finish"
    )

    def problems(self) -> Iterator[Problem]:
        """See `Settings`."""
        yield from super().problems()
        if self.http:
            yield from self._listening("http")
        yield from self._file("tls_client_ca")
        yield from self._file("tokens")
        if self.tls_client_ca and not self.tls_cert:
            yield Problem("tls_cert", "must be set: clients show certificates where TLS is spoken")

    @field_validator("verify", "draft")
    @classmethod
    def _check_endpoints(cls, text: str) -> str:
        parse_endpoints(text)
        return text

    @field_validator("verify")
    @classmethod
    def _check_some(cls, text: str) -> str:
        if not parse_endpoints(text):
            raise ValueError("name at least one verify service")
        return text
