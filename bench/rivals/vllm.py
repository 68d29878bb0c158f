"""vLLM as a rival: its own OpenAI server, alone, with the same draft model and with its n-grams."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench.rivals.options import RivalOptions
from bench.rivals.rival import CONTEXT_SPARE, Rival, output_of, rival_mode
from bench.rivals.vllm_server import ENVIRONMENT, SERVED_NAME, vllm_command
from bench.stack.models import Models

LOOKAHEADS = (2, 4)
"""Draft tokens of a step by the draft model; the best one counts."""

NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 2}

_FIND = """
import importlib.metadata as m, pathlib, sys
print(m.version(m.packages_distributions()['vllm'][0]))
print(*pathlib.Path(sys.prefix, 'lib').glob('libiomp5.so'))
"""
"""Its version, without the seconds that importing it takes, and where Intel's OpenMP lies if its CPU build brought it:
vLLM warns that speculation is much slower unless LD_PRELOAD names that."""


def vllm_rivals(options: RivalOptions, models: Models, num_tokens: int) -> Iterable[Rival]:
    """All of them, with room for `num_tokens` of prompt and answer. Raises NoRivalError."""
    python = (options.python or Path(sys.executable)).absolute()  # servers run in another folder
    advice = f"{python} has no vLLM: name one that has with --rival-python FILE"
    version, *openmp = output_of([str(python), "-c", _FIND], advice).splitlines()
    preload = {"LD_PRELOAD": openmp[0]} if openmp and "LD_PRELOAD" not in os.environ else {}
    flags = (
        f"--dtype={models.dtype}",
        f"--max-model-len={num_tokens + CONTEXT_SPARE}",
        "--max-num-seqs=16",
        "--generation-config=vllm",  # no sampling parameters but those that are asked for
        "--no-enable-prefix-caching",  # as ours forget each prompt before the next question
        "--disable-uvicorn-access-log",
    )

    def rival(name: str, about: str, speculation: Mapping[str, object] | None, family: str = "") -> Rival:
        shown = [*(f"{name}={Path(file).name}" for name, file in preload.items()), *flags]
        if speculation is not None:
            shown.append(f"--speculative-config={json.dumps({**speculation, **_without_path(speculation)})}")
        return Rival(
            mode=rival_mode(name, f"vLLM {about}", f"vLLM {version}", shown, family),
            command=vllm_command(python, Path(models.target).resolve(), flags, speculation),
            environment={**ENVIRONMENT, **preload},
            model=SERVED_NAME,
        )

    draft = str(Path(models.draft).resolve())
    yield rival("vllm", "alone", None)
    for lookahead in LOOKAHEADS:
        speculation = {"method": "draft_model", "model": draft, "num_speculative_tokens": lookahead}
        yield rival(
            f"vllm_draft_{lookahead}", f"with the same draft, {lookahead} tokens a step", speculation, "vllm_draft"
        )
    yield rival("vllm_ngram", "with its n-grams", NGRAM)


def _without_path(speculation: Mapping[str, object]) -> dict[str, object]:
    """Folders by their names alone: the rest tells of a machine."""
    return {name: Path(str(value)).name for name, value in speculation.items() if name == "model"}
