"""How the ranks of a model come together: rank 0 starts the others on its machine, or torchrun has started all."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading

import structlog
import torch
from torch._C._distributed_c10d import Store, TCPStore

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.parallel.ranks import Ranks
from outrider.machine.leaving import leave
from outrider.machine.tether import tethered
from outrider.settings import ENVIRONMENT_PREFIX
from outrider.worker.config import Place, WorkerConfig, place

_FOLLOWER = "verify_service"
"""The module that a rank runs. It sees by its place that it is not the first."""

_LOOPBACK = "127.0.0.1"

_ending = threading.Lock()
"""Held by the first who finds that a rank is lost: its connection and its process both tell."""

_log = structlog.get_logger()


def join(config: WorkerConfig) -> Ranks:
    """The ranks of the model that `config` divides, of which this process is one. When another one is lost, this
    process ends with a sentence and status 1: what it holds is of no use without the others.

    Raises UnsupportedModelError if they cannot come together.
    """
    device = device_of(config)
    store = _start_others(config) if place() is None else None
    ranks = Ranks(place_of(config).rank, config.num_ranks, device, store)
    if ranks.rank == 0:
        ranks.watch(lambda rank: _end(f"rank {rank} of {ranks.num_ranks} is lost"))
    return ranks


def place_of(config: WorkerConfig) -> Place:
    """This process' place: torchrun's, or else the first of ranks that are all on this machine."""
    first = Place(0, config.num_ranks, 0, config.num_ranks)
    return first if config.num_ranks == 1 else place() or first


def device_of(config: WorkerConfig) -> torch.device:
    """The device of this rank. Raises UnsupportedModelError if its machine has too few of them."""
    found = place_of(config)
    if config.device == "cpu":
        if torch.cuda.is_available():
            raise UnsupportedModelError(
                "--tensor-parallel with --device cpu: transformers would take the CUDA devices that torch sees; hide "
                "them, CUDA_VISIBLE_DEVICES= , or use --device cuda"
            )
        return torch.device("cpu")
    if (num_devices := torch.cuda.device_count()) < found.num_local_ranks:
        raise UnsupportedModelError(
            f"--tensor-parallel {config.num_ranks} wants {found.num_local_ranks} CUDA devices on this machine, and "
            f"torch sees {num_devices}; use fewer, or several machines by torchrun"
        )
    return torch.device("cuda", found.local_rank)


def _start_others(config: WorkerConfig) -> Store:
    """Starts the other ranks, which end when this process does. Returns the store where they meet, which no other
    machine reaches."""
    listener = socket.create_server((_LOOPBACK, 0))
    port = listener.getsockname()[1]
    store = TCPStore(_LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    settings = {f"{ENVIRONMENT_PREFIX}{name.upper()}": str(value) for name, value in config if value is not None}
    for rank in range(1, config.num_ranks):
        at = Place(rank, config.num_ranks, rank, config.num_ranks)
        variables = settings | at.variables() | {"MASTER_ADDR": _LOOPBACK, "MASTER_PORT": str(port)}
        process = subprocess.Popen(
            ["env", *(f"{name}={value}" for name, value in variables.items()), *tethered(_FOLLOWER)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        threading.Thread(target=_wait, args=(process, rank, config.num_ranks), name=f"rank {rank}", daemon=True).start()
    return store


def _wait(process: subprocess.Popen[bytes], rank: int, num_ranks: int) -> None:
    """Until the ranks have come together nothing else tells that one of them has ended."""
    if status := process.wait():
        _end(f"rank {rank} of {num_ranks} has ended with status {status}")


def _end(words: str) -> None:
    if not _ending.acquire(blocking=False):
        return
    with contextlib.suppress(Exception):  # whatever becomes of the words, the process ends
        _log.error(
            "cannot serve", reason=f"{words}: a model over several devices serves with all of them or not at all"
        )
    leave(1)
