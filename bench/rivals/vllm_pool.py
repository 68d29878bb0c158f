"""vLLM alone, with a draft model of its own, and with Outrider's draft pool: the same requests in alternating blocks.

    python -m bench.rivals.vllm_pool --vllm-python build/vllm/bin/python --json bench/results/vllm-pool.json

All three servers are started before the first block. Those that a block is not about are stopped meanwhile: a worker of
vLLM that has nothing to do spins.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.prompts import load_prompts, tokenizer
from bench.rivals.vllm_server import VllmServer, drafter_process, vllm_server
from outrider.vllm.config import PoolConfig

LOGS = Path("build/vllm-logs")
"""Where the servers' output goes."""

WAIT_MS: float = PoolConfig.model_fields["vllm_wait_ms"].default

_MODELS = Path(__file__).parents[2] / "models"

ALONE, OWN_DRAFT, POOL = "vllm", "vllm_draft_model", "vllm_outrider_pool"


class Block(NamedTuple):
    """What one arm did with all prompts once."""

    seconds: float
    counts: Mapping[str, float]
    texts: Sequence[str]


def main(
    vllm_python: Annotated[Path, typer.Option(help="Interpreter of an environment that has vLLM and Outrider.")],
    target: Annotated[Path, typer.Option(help="Folder of the target.")] = _MODELS / "target",
    draft: Annotated[Path, typer.Option(help="Folder of the draft model.")] = _MODELS / "draft",
    num_speculative_tokens: Annotated[int, typer.Option(min=1, help="Longest chain that a step verifies.")] = 5,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 1,
    num_prompts: Annotated[int, typer.Option(min=1, help="Prompts of each block.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 48,
    num_blocks: Annotated[int, typer.Option(min=1, help="Blocks of each arm, after one that warms up.")] = 3,
    wait_ms: Annotated[list[float], typer.Option(help="OUTRIDER_VLLM_WAIT_MS: a pool for each.")] = [WAIT_MS],  # noqa: B006
    out: Annotated[Path | None, typer.Option("--json", help="Where to write the figures as JSON, too.")] = None,
) -> None:
    """Measure vLLM alone, with its own draft model, and with Outrider's drafters."""
    LOGS.mkdir(parents=True, exist_ok=True)
    prompts = load_prompts(None, num_prompts, tokenizer(target))
    with ExitStack() as running:
        _, address = running.enter_context(drafter_process(Path(sys.executable), draft, LOGS / "draft.log"))
        proposer = {"method": "custom_class", "model": "outrider.vllm.RemoteProposer"}
        settings: Mapping[str, tuple[Mapping[str, object] | None, Mapping[str, str]]] = {
            ALONE: (None, {}),
            OWN_DRAFT: ({"method": "draft_model", "model": str(draft)}, {}),
            **{
                f"{POOL}_{each:g}_ms": (proposer, {"OUTRIDER_DRAFT": address, "OUTRIDER_VLLM_WAIT_MS": f"{each:g}"})
                for each in wait_ms
            },
        }
        rounds: dict[str, list[Block]] = {arm: [] for arm in settings}
        servers: dict[str, VllmServer] = {}
        for arm, (speculation, variables) in settings.items():
            chosen = None if speculation is None else speculation | {"num_speculative_tokens": num_speculative_tokens}
            servers[arm] = running.enter_context(
                vllm_server(vllm_python, target.resolve(), LOGS / f"{arm}.log", chosen, **variables)
            )
            servers[arm].wait_until_ready()
            servers[arm].pause()
        for number in range(num_blocks + 1):
            order = list(servers) if number % 2 else list(servers)[::-1]
            for arm in order:
                block = _block(servers[arm], prompts, concurrency, max_tokens)
                if number:
                    rounds[arm].append(block)
    figures = {
        "what": "greedy answers of a fixed length by vLLM's OpenAI server; alternating blocks, idle servers stopped",
        "caveat": "vLLM and the drafter share the machine's cores: compare arms of one run only, by their medians",
        "machine": machine.facts() | {"load_average": round(os.getloadavg()[1], 1)},
        "target": target.name,
        "draft": draft.name,
        "num_speculative_tokens": num_speculative_tokens,
        "concurrency": concurrency,
        "num_prompts": num_prompts,
        "max_tokens": max_tokens,
        "num_blocks": num_blocks,
        "texts_equal": {arm: _equal(rounds[ALONE], blocks) for arm, blocks in rounds.items()},
        "arms": {arm: _figures(blocks) for arm, blocks in rounds.items()},
    }
    _show(figures["arms"])
    if out is not None:
        out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _block(server: VllmServer, prompts: Sequence[Sequence[int]], concurrency: int, max_tokens: int) -> Block:
    server.resume()
    try:
        before = server.counts()
        started = time.perf_counter()
        with ThreadPoolExecutor(concurrency) as pool:
            texts = list(pool.map(lambda prompt: server.complete(prompt, max_tokens), prompts))
        seconds = time.perf_counter() - started
        counts = {name: count - before.get(name, 0.0) for name, count in server.counts().items()}
    finally:
        server.pause()
    return Block(seconds, counts, texts)


def _equal(alone: Sequence[Block], blocks: Sequence[Block]) -> float:
    """The share of answers that are those of vLLM alone."""
    pairs = [
        (one, other)
        for block, reference in zip(blocks, alone, strict=True)
        for one, other in zip(block.texts, reference.texts, strict=True)
    ]
    return sum(one == other for one, other in pairs) / len(pairs)


def _figures(blocks: Sequence[Block]) -> dict[str, object]:
    """Time per token block by block, and what vLLM's own counters say of drafts."""
    total = {name: sum(block.counts.get(name, 0.0) for block in blocks) for block in blocks for name in block.counts}
    num_drafts, num_drafted = total.get("spec_decode_num_drafts", 0.0), total.get("spec_decode_num_draft_tokens", 0.0)
    num_accepted, num_tokens = total.get("spec_decode_num_accepted_tokens", 0.0), total["generation_tokens"]
    per_token = [1000.0 * block.seconds / block.counts["generation_tokens"] for block in blocks]
    return {
        "ms_per_token": [round(each, 2) for each in per_token],
        "ms_per_token_median": round(statistics.median(per_token), 2),
        "acceptance_rate": round(num_accepted / num_drafted, 3) if num_drafted else None,
        "acceptance_length": round(1.0 + num_accepted / num_drafts, 2) if num_drafts else None,
        "tokens_per_step": round(num_tokens / total["iteration_tokens_total_count"], 2),
        "num_drafts": round(num_drafts),
        "num_draft_tokens": round(num_drafted),
        "num_accepted_tokens": round(num_accepted),
        "num_tokens": round(num_tokens),
    }


def _show(arms: object) -> None:
    if not isinstance(arms, Mapping):
        return
    columns = ("ms_per_token_median", "ms_per_token", "acceptance_rate", "acceptance_length", "tokens_per_step")
    table = Table("arm", *columns)
    for arm, figures in arms.items():
        table.add_row(str(arm), *(str(figures[column]) for column in columns))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
