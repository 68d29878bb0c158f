"""Which other systems are measured, and where they are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Option


class RivalName(StrEnum):
    """Another system."""

    VLLM = "vllm"
    LLAMA_CPP = "llama.cpp"


@dataclass(frozen=True, slots=True, kw_only=True)
class RivalOptions:
    """Other systems, which the benchmark starts."""

    names: Annotated[
        tuple[RivalName, ...], Option("--rival", help="Another system to measure too. May be repeated.")
    ] = ()
    python: Annotated[
        Path | None,
        Option(
            "--rival-python",
            help="The Python that has vLLM, or what llama.cpp's converter imports; default: the one that runs this.",
            metavar="FILE",
            exists=True,
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
            exists=True,
        ),
    ] = None


NO_RIVALS = RivalOptions()
