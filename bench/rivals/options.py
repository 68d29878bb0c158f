"""Which other systems are measured, and where they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option


@dataclass(frozen=True, slots=True, kw_only=True)
class RivalOptions:
    """Other systems, which the benchmark starts."""

    names: Annotated[
        tuple[str, ...],
        Option("--rival", help="Another system to measure too: vllm or llama.cpp. May be repeated.", metavar="NAME"),
    ] = ()
    python: Annotated[
        Path | None,
        Option(
            "--rival-python",
            help="The Python that has vLLM, or what llama.cpp's converter imports; default: the one that runs this.",
            metavar="FILE",
        ),
    ] = None
    binary: Annotated[
        str, Option("--rival-binary", help="llama.cpp's server, a name on the PATH or a file.", metavar="FILE")
    ] = "llama-server"
    convert: Annotated[
        Path | None,
        Option(
            "--rival-convert",
            help="llama.cpp's own convert_hf_to_gguf.py, which makes its checkpoints.",
            metavar="FILE",
        ),
    ] = None


NO_RIVALS = RivalOptions()
