"""What a coordinator says about itself and the workers that it knows."""

from __future__ import annotations

from dataclasses import dataclass

from outrider.core.protocol.messages import ModelInfo, WorkerLoad


@dataclass(frozen=True, slots=True)
class Replica:
    """One worker that the coordinator knows."""

    address: str
    service: str
    """`outrider.v1.DraftService` or `outrider.v1.VerifyService`."""
    serving: bool
    """Whether sessions are placed there."""
    problem: str
    """Why not; empty if they are."""
    model: ModelInfo | None
    """None while it has never answered."""
    load: WorkerLoad | None
    """None while it is not serving."""
    num_own_sessions: int
    """Sessions of this coordinator that are there."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What is served."""

    version: str
    protocol_version: int
    target: ModelInfo
    draft: ModelInfo | None
    """None while no matching drafter is reachable. See `target.draft_model` for that of verifiers that draft for
    themselves."""
    target_only_reason: str
    """Why requests would run by the target alone at present; empty if they would not."""
    num_running: int
    """Completions under way."""
    replicas: tuple[Replica, ...] = ()
    """Every worker that the coordinator knows."""
