"""Another host on this machine: a network namespace with a wire to it. Linux, as root, with iproute2.

`python -m bench.stack.namespace NAME MODULE ARGUMENT...` becomes that module within the namespace of that name.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

from bench.stack.delay import delayed
from outrider.core.protocol.errors import OutriderError
from outrider.machine.tether import tethered

NAME = "outrider-far"

_WIRE = "outrider{}"
"""What a wire's ends are called, here and there."""

_NETWORK = "198.18.{}."
"""The first network that RFC 2544 sets apart for measurements: nobody has addresses of it."""

_HERE, _THERE = 1, 2
"""The ends of a wire in its network."""


class NoNamespaceError(OutriderError):
    """There can be no other host."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """A host of its own interfaces, addresses and ports, which has this one's files and processors."""

    has_netem: bool
    """Whether this kernel can hold packets back."""
    _wires: contextlib.AsyncExitStack
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def address(self) -> str:
        """Where it is reached without a delay."""
        return f"{_NETWORK.format(0)}{_THERE}"

    @property
    def home(self) -> str:
        """Where this host is reached from there."""
        return f"{_NETWORK.format(0)}{_HERE}"

    @property
    def wire(self) -> str:
        """What the interface between the two is called, on both."""
        return _WIRE.format(0)

    def command(self, command: Sequence[str]) -> Sequence[str]:
        """What to run to have `command`, a module and its arguments, in there."""
        return (__name__, NAME, *command)

    @contextlib.asynccontextmanager
    async def delayed(self, upstreams: Sequence[str], milliseconds: float) -> AsyncIterator[dict[str, str]]:
        """By each address of `upstreams` the one in its place, where a message takes `milliseconds` more each way: on a
        wire of its own that holds packets back, or by relays of `delay` where the kernel cannot.

        Raises NoNamespaceError.
        """
        if not self.has_netem:
            async with delayed(upstreams, milliseconds) as relayed:
                yield relayed
            return
        address, wire = await self.lay()
        for netns in ((), ("-n", NAME)):
            await _run("tc", *netns, "qdisc", "add", "dev", wire, "root", "netem", "delay", f"{milliseconds:g}ms")
        yield {upstream: f"{address}:{upstream.rpartition(':')[2]}" for upstream in upstreams}

    async def lay(self) -> tuple[str, str]:
        """One more wire between the hosts: the other's address on it, and what its ends are called. Raises
        NoNamespaceError."""
        number = next(self._numbers)
        wire, network = _WIRE.format(number), _NETWORK.format(number)
        await _run("ip", "link", "add", wire, "type", "veth", "peer", "name", wire, "netns", NAME)
        self._wires.push_async_callback(_run, "ip", "link", "delete", wire)
        for netns, end in (((), _HERE), (("-n", NAME), _THERE)):
            await _run("ip", *netns, "address", "add", f"{network}{end}/30", "dev", wire)
            await _run("ip", *netns, "link", "set", wire, "up")
        return f"{network}{_THERE}", wire


@contextlib.asynccontextmanager
async def namespace() -> AsyncIterator[Namespace]:
    """The other host, with one wire. It is gone afterwards. Raises NoNamespaceError."""
    async with contextlib.AsyncExitStack() as leaving:
        await _run("ip", "netns", "add", NAME)
        leaving.push_async_callback(_run, "ip", "netns", "delete", NAME)
        await _run("ip", "-n", NAME, "link", "set", "lo", "up")
        try:
            await _run("tc", "-n", NAME, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
            await _run("tc", "-n", NAME, "qdisc", "delete", "dev", "lo", "root")
            has_netem = True
        except NoNamespaceError:
            has_netem = False
        made = Namespace(has_netem, leaving)
        await made.lay()
        yield made


async def _run(*command: str) -> None:
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE)
    except FileNotFoundError as error:
        raise NoNamespaceError(f"{command[0]} is not installed; it is part of iproute2") from error
    _, told = await process.communicate()
    if process.returncode:
        raise NoNamespaceError(
            f"`{' '.join(command)}` failed ({told.decode(errors='replace').strip()}); network namespaces want Linux "
            f"and root, and one that an earlier run has left goes by `ip netns delete {NAME}`"
        )


def main() -> None:
    """Replaces this process, which keeps its id and its standard streams: whoever started it sees one service."""
    name, *command = sys.argv[1:]
    os.execvp("ip", ["ip", "netns", "exec", name, *tethered(*command)])


if __name__ == "__main__":
    main()
