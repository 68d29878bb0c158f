"""A network namespace with one link to this one, which can be cut as a cable is: no reset, no word. Linux, and root.

`python -m tests.chaos.namespace NAME MODULE ARGUMENT...` becomes that module inside.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import runpy
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

_CLONE_NEWNET = 0x40000000
"""See setns(2)."""

_NETWORK = "10.203.77"
"""Of the link: the far end has 2, this one 1."""


class NoNamespaceError(Exception):
    """This platform makes no network namespaces, or lets us have none."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """What is on the far side of the link."""

    name: str
    address: str
    """Where it is reached from here."""

    async def cut(self) -> None:
        """From now on nothing passes, and nobody is told."""
        await _ip("-n", self.name, "link", "set", "far", "down")

    async def join(self) -> None:
        """The link is there again."""
        await _ip("-n", self.name, "link", "set", "far", "up")


@asynccontextmanager
async def namespace() -> AsyncIterator[Namespace]:
    """Makes one, and removes it. Raises NoNamespaceError, in words."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        raise NoNamespaceError("network namespaces take Linux, iproute2 and root")
    name, near = f"outrider-{os.getpid()}", f"out{os.getpid()}"
    await _ip("netns", "add", name)
    try:
        await _ip("link", "add", near, "type", "veth", "peer", "name", "far", "netns", name)
        await _ip("addr", "add", f"{_NETWORK}.1/24", "dev", near)
        await _ip("link", "set", near, "up")
        await _ip("-n", name, "addr", "add", f"{_NETWORK}.2/24", "dev", "far")
        await _ip("-n", name, "link", "set", "lo", "up")
        await _ip("-n", name, "link", "set", "far", "up")
        yield Namespace(name, f"{_NETWORK}.2")
    finally:
        await _ip("netns", "del", name)


async def _ip(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec("ip", *arguments, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    if process.returncode:
        raise NoNamespaceError(f"ip {' '.join(arguments)}: {said.decode().strip()}")


def main() -> None:
    """Enters the namespace and becomes the module: threads that begin after this are inside too."""
    _, name, *sys.argv = sys.argv
    with Path("/run/netns", name).open("rb") as handle:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(handle.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {name}")
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
