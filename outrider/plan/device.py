"""Devices by name: the three figures that decoding depends on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from outrider.core.protocol.errors import OutriderError

_FIGURE_MAX = 1e9
"""Largest figure that is counted with: a thousand times and more what the largest devices have."""


class UnknownDeviceError(OutriderError):
    """A device whose figures are not known."""


class Device(NamedTuple):
    """What a maker says of one device; dense, at 16 bits."""

    name: str
    gib: float
    """Memory."""
    gb_per_s: float
    """Memory bandwidth."""
    tflops: float
    """Arithmetic."""


DEVICES: Final[Mapping[str, Device]] = {
    each.name: each
    for each in (
        Device("t4", 16, 320, 65),
        Device("l4", 24, 300, 121),
        Device("a10", 24, 600, 125),
        Device("rtx4090", 24, 1008, 165),
        Device("l40s", 48, 864, 362),
        Device("a100-40", 40, 1555, 312),
        Device("a100", 80, 2039, 312),
        Device("h100", 80, 3350, 989),
        Device("h200", 141, 4800, 989),
        Device("b200", 180, 7700, 2250),
    )
}
"""By the makers' data sheets, without sparsity."""


def parse_device(text: str) -> Device:
    """A name of DEVICES, or GIB:GB_PER_S:TFLOPS. Raises UnknownDeviceError."""
    if (known := DEVICES.get(text.lower())) is not None:
        return known
    try:
        gib, gb_per_s, tflops = (float(figure) for figure in text.split(":"))
    except ValueError:
        gib = gb_per_s = tflops = 0.0
    if not all(0 < figure <= _FIGURE_MAX for figure in (gib, gb_per_s, tflops)):
        raise UnknownDeviceError(
            f"the device {text!r} is not known; use one of {', '.join(DEVICES)}, or its GiB of memory, GB/s of "
            "bandwidth and TFLOPS at 16 bits, such as 141:4800:989"
        )
    return Device(text, gib, gb_per_s, tflops)
