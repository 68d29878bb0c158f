"""Settings of a worker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from outrider.core.protocol.validation import SESSIONS_MAX
from outrider.settings import CORES_DESCRIPTION, CORES_PATTERN, Settings

PAD_TOKENS_MAX = 256
"""Most tokens that small steps may be padded to: as many as one round may verify, and by far more than it does."""

AUTO_KV_MEMORY = "auto"
"""Lets the worker choose."""

KV_MEMORY_PATTERN = r"^(auto|\d+(\.\d+)?\s*(%|[KMGTkmgt]i?[Bb]))$"
"""What `kv_memory` looks like."""


class WorkerConfig(Settings):
    """What the draft and the verify service are told."""

    model: str = Field(description="model folder (config.json, *.safetensors, tokenizer.json), or a hub name org/name")
    device: str = Field("cpu", description="torch device: cpu, cuda, cuda:0, ...")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="type of weights and activations; auto takes the type of the stored weights"
    )
    listen: str = Field(description="host:port to serve on; keep it on loopback or a private network")
    max_sessions: int = Field(64, ge=1, le=SESSIONS_MAX, description="most sessions at a time")
    max_context: int = Field(
        4096, ge=2, description="most tokens of prompt and output together; the model's own limit if that is less"
    )
    kv_memory: str = Field(
        AUTO_KV_MEMORY,
        pattern=KV_MEMORY_PATTERN,
        description="memory for keys and values, which all sessions share: a size such as 2GiB or 500MB, or a share of "
        "what the device has left, such as 50%; auto: what all sessions could need, at most half of what a GPU or a "
        "quarter of what a computer has left",
    )
    num_threads: int = Field(
        default_factory=lambda: max(1, (os.cpu_count() or 1) // 2),
        ge=1,
        description="threads for tensor arithmetic on the CPU; default: half of the cores",
    )
    cores: str = Field("", pattern=CORES_PATTERN, description=CORES_DESCRIPTION)
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="compiled forward passes, twice as fast or more; on: compile before serving (a minute, once for a "
        "model and machine); auto: serve at once, compile meanwhile if a compiler is there",
    )
    compile_cache: Path = Field(
        default_factory=lambda: Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outrider",
        description="folder for compiled forward passes, as large as the models; what lies there is run, so keep it "
        "private",
    )
    attention_backend: str = Field(
        "auto",
        description="how layers attend: torch (session by session, anywhere), paged (FlashAttention over blocks, on "
        "GPUs in 16 bits), static (small steps as CUDA graphs, others as paged or torch), native (machine code, on "
        "CPUs); auto: the best that works here; on a CPU native, or torch where that cannot be built",
    )
    pad_tokens: int = Field(
        0,
        ge=0,
        le=PAD_TOKENS_MAX,
        description="pad smaller steps to this many tokens, so that they round alike; for 16-bit types where logits "
        "depend on the batch (the start says whether they do)",
    )
    ngram_table: str = Field(
        "", description="file of python -m recipes.ngram_table: guesses for what the text has not said before"
    )
    drain_seconds: float = Field(20.0, ge=0, description="after SIGTERM: time that running sessions get to finish")
