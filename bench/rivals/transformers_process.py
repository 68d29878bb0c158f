"""transformers' own generation in a process of its own, asked on standard input: one JSON object per line each way."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer


class Clock(BaseStreamer):
    """Notes when tokens come, and how many at a time."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[float, list[int]]] = []
        self._prompt_is_next = True

    def put(self, value: Tensor) -> None:
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        self.arrivals.append((time.perf_counter(), value.flatten().tolist()))

    def end(self) -> None:
        pass


def main(
    target: Annotated[Path, typer.Option(help="Model folder.")],
    draft: Annotated[Path, typer.Option(help="Model folder of the assistant.")],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")],
    target_device: Annotated[str, typer.Option(help="torch device.")] = "cpu",
    draft_device: Annotated[str, typer.Option(help="torch device.")] = "cpu",
    cores: Annotated[str, typer.Option(help="Processor cores to keep to, such as 0,1.")] = "",
) -> None:
    """Answers requests until standard input ends."""
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
        torch.set_num_threads(len(cores.split(",")))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    models = {"target": _load(target, dtype, target_device), "draft": _load(draft, dtype, draft_device)}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(models, json.loads(line))), flush=True)


def _load(folder: Path, dtype: str, device: str) -> PreTrainedModel:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True
    )
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)  # no end of text: every answer is as long
    return model.eval()


def _answer(models: dict[str, PreTrainedModel], request: dict[str, Any]) -> dict[str, Any]:
    clock = Clock()
    sampled = {"do_sample": True, "temperature": request["temperature"], "top_k": 0, "top_p": 1.0}
    target: Any = models["target"]
    torch.manual_seed(request["seed"])
    started = time.perf_counter()
    with torch.inference_mode():
        prompt = torch.tensor([request["prompt"]], device=target.device)
        target.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=request["max_tokens"],
            streamer=clock,
            assistant_model=models["draft"] if request["assisted"] else None,
            **(sampled if request["temperature"] > 0 else {"do_sample": False}),
        )
    (first, _), (last, _) = clock.arrivals[0], clock.arrivals[-1]
    return {
        "first_token_ms": (first - started) * 1000.0,
        "total_ms": (last - started) * 1000.0,
        "rounds": [len(token_ids) for _, token_ids in clock.arrivals],
        "token_ids": [token_id for _, token_ids in clock.arrivals for token_id in token_ids],
    }


if __name__ == "__main__":
    typer.run(main)
