"""The processes of the services, with their addresses, cores and flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from outrider.cli.certificates import tls_settings, transport_to
from outrider.cli.child import Child, Observer
from outrider.cli.cores import available_cores, lent_cores, num_threads, share_cores
from outrider.cli.ports import free_addresses
from outrider.cli.up_options import UpOptions, numbered
from outrider.cli.worker_settings import drafter_settings, verifier_settings
from outrider.core.propose.ngram import NGRAM_MODEL


class Children(NamedTuple):
    """The services of one `outrider up`, by kind."""

    coordinators: list[Child]
    verifiers: list[Child]
    drafters: list[Child]


def children_of(options: UpOptions, observer: Observer) -> Children:
    """All of them, none started. Raises PortTakenError."""
    drafts = [draft for draft in options.drafts for _ in range(options.num_drafters)]
    addresses = free_addresses(
        {
            "--port": (options.port, options.num_coordinators),
            "--http-port": (options.http_port or 0, options.num_coordinators),
            "--draft-port": (options.draft_port, len(drafts)),
            "--verify-port": (options.verify_port, options.num_verifiers),
        }
    )
    computing = [draft for draft in drafts if draft != NGRAM_MODEL and options.draft_device == "cpu"]
    cores = share_cores(
        available_cores(), options.num_verifiers if options.target_device == "cpu" else 0, len(computing)
    )
    verifier_shares, drafter_shares = iter(cores.verifiers), iter(cores.drafters)
    verifiers = [
        Child(
            name,
            [
                *_command("verify_service", verifier_settings(options), address),
                *_core_flags(share := next(verifier_shares, ""), divided=options.num_verifiers > 1),
                f"--cores-batch={lent_cores(share, cores.others)}",
            ],
            address=address,
            health_service="outrider.v1.VerifyService",
            observer=observer,
            transport=transport_to(options.tls, "verify"),
        )
        for name, address in zip(numbered("verify", options.num_verifiers), addresses["--verify-port"], strict=True)
    ]
    drafters = [
        Child(
            name,
            [
                *_command("draft_service", drafter_settings(options, draft), address),
                *(
                    _core_flags(next(drafter_shares, ""), divided=len(computing) > 1)
                    if draft in computing
                    else _core_flags(cores.others, divided=False)
                ),
            ],
            address=address,
            health_service="outrider.v1.DraftService",
            observer=observer,
            transport=transport_to(options.tls, "draft"),
        )
        for name, draft, address in zip(numbered("draft", len(drafts)), drafts, addresses["--draft-port"], strict=True)
    ]
    coordinators = [
        Child(
            name,
            [
                "coordinator",
                f"--listen={address}",
                f"--http={http or ''}",
                f"--verify={','.join(child.address for child in verifiers)}",
                f"--draft={','.join(child.address for child in drafters)}",
                f"--cores={cores.others}",
                *_flags(tls_settings(options.tls, "coordinator")),
            ],
            address=address,
            health_service="outrider.v1.GenerationService",
            observer=observer,
            http_address=http,
            transport=transport_to(options.tls, "coordinator"),
        )
        for name, address, http in zip(
            numbered("coordinator", options.num_coordinators),
            addresses["--port"],
            [None if options.http_port is None else each for each in addresses["--http-port"]],
            strict=True,
        )
    ]
    return Children(coordinators, verifiers, drafters)


def _core_flags(share: str, *, divided: bool) -> list[str]:
    """Workers that divide the cores must not each take threads for half of the machine."""
    return [f"--cores={share}", *([f"--num-threads={num_threads(share)}"] if divided and share else [])]


def _command(module: str, settings: Mapping[str, str], address: str) -> list[str]:
    return [module, *_flags({**settings, "listen": address})]


def _flags(settings: Mapping[str, str]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
