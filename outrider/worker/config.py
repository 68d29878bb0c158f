"""Settings of a worker."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from outrider.core.protocol.identity import COORDINATOR_NAME
from outrider.core.protocol.model_name import is_hub_name
from outrider.core.protocol.validation import SESSIONS_MAX
from outrider.machine.limits import num_cores
from outrider.settings import (
    CORES_DESCRIPTION,
    CORES_PATTERN,
    DRAIN_SECONDS_MAX,
    NAMES_PATTERN,
    VLLM_METRICS_DESCRIPTION,
    Problem,
    Settings,
)
from outrider.worker.extras import ENGINE, NGRAM_TABLE, lacking

PAD_TOKENS_MAX = 256
"""Most tokens that small steps may be padded to: as many as one round may verify, and by far more than it does."""

THREADS_MAX = 1024
"""Most threads that may be asked for: more than machines have cores, and few enough that the system starts them."""

AUTO_KV_MEMORY = "auto"
"""Lets the worker choose."""

DEVICE_PATTERN = r"^(cpu|cuda(:\d+)?)$"
"""What `device` looks like."""

KV_MEMORY_PATTERN = r"^(auto|\d+(\.\d+)?\s*(%|[KMGTkmgt]i?[Bb]))$"
"""What `kv_memory` looks like."""


def check_device(name: str) -> None:
    """Raises ValueError for what looks like no device. Whether this machine has it is found when it is used."""
    if not re.fullmatch(DEVICE_PATTERN, name):
        raise ValueError(f"{name!r} is no device; use cpu, cuda or cuda:N")


def check_kv_memory(text: str) -> None:
    """Raises ValueError for what is neither a size nor a share."""
    if not re.fullmatch(KV_MEMORY_PATTERN, text):
        raise ValueError(f"{text!r} is no room for keys and values; write 2GiB, 500MB, 50% or auto")


def num_threads_of(cores: str, num_workers: int) -> int:
    """Threads of a worker that is not told, where `num_workers` share what the process may use. It has these `cores`,
    or any if there are none."""
    usable = num_cores()
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list is for nested loops
    wanted = min(int(asked), usable) if asked.isdecimal() else usable // num_workers
    return max(1, min(wanted, cores.count(",") + 1) if cores else wanted)


def default_num_threads(settings: Mapping[str, Any]) -> int:
    """As if another worker took the other half."""
    return num_threads_of(settings.get("cores", ""), 2)


def default_compile_cache() -> Path:
    """The user's own cache; for a user without a home a folder that is not there, so that nothing is compiled."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outrider"
    except RuntimeError:
        return Path("/nonexistent/outrider")


class Place(NamedTuple):
    """Where a process stands among the ranks of one model, by torchrun's variables."""

    rank: int
    num_ranks: int
    local_rank: int
    """Among those on its machine."""
    num_local_ranks: int

    def variables(self) -> dict[str, str]:
        """What says so to a process."""
        return dict(zip(_PLACE_VARIABLES, map(str, self), strict=True))


_PLACE_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def place() -> Place | None:
    """Where torchrun put this process; None if it is no rank of anybody's. Raises ValueError for what is no number."""
    found = [os.environ.get(name) for name in _PLACE_VARIABLES]
    return None if None in found else Place(*(int(number or "") for number in found))


def keep_ranks_on_loopback() -> None:
    """Has the sockets by which ranks find one another listen on this machine's own interface alone, unless the
    operator's variables name another."""
    loopback = "lo" if sys.platform == "linux" else "lo0"
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, loopback)


def no_model(name: str) -> str:
    """Why `name` stands for no model that could be loaded; empty if it may."""
    folder = os.path.expanduser(name)
    if text := lacking(ENGINE, "engine"):
        return f"a model {text}"
    if os.path.isdir(folder):
        if not os.access(folder, os.R_OK | os.X_OK):
            return f"this user may not read the folder {folder!r}"
        if not os.path.isfile(os.path.join(folder, "config.json")):
            return f"{folder!r} has no config.json; name the folder that save_pretrained wrote"
    elif not is_hub_name(name):
        return (
            f"there is no model folder {name!r}; name a folder with config.json and *.safetensors, or a hub name such "
            "as org/name"
        )
    return ""


class WorkerConfig(Settings):
    """What the draft and the verify service are told."""

    drafts: ClassVar[bool] = False
    """Whether the model makes guesses, level after level, rather than decides."""

    model: str = Field(description="model folder (config.json, *.safetensors, tokenizer.json), or a hub name org/name")
    device: str = Field("cpu", pattern=DEVICE_PATTERN, description="torch device: cpu, cuda, cuda:0, ...")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="type of weights and activations; auto takes the type of the stored weights"
    )
    weights: Literal["auto", "full", "fp8", "int4", "int8"] = Field(
        "auto",
        description="in what linear layers keep their weights; auto: as a quantized folder has them, but on a CPU "
        "de-quantised, and a drafter's there in int8 where that is faster; full: de-quantised at start; fp8, int4: as "
        "auto, where a folder that is not quantized so is refused; int8: rounded at start, of a drafter on a CPU alone",
    )
    kv_cache_dtype: Literal["auto", "fp8"] = Field(
        "auto",
        description="type of keys and values in the KV cache; auto: that of the activations; fp8: half of 16 bits, and "
        "other tokens now and then (the start says how far logits move)",
    )
    listen: str = Field(description="host:port to serve on")
    tls_peers: str = Field(
        COORDINATOR_NAME,
        pattern=NAMES_PATTERN,
        description="with TLS: names, one of which a caller's certificate must have (subject alternative names, with "
        "commas)",
    )
    max_sessions: int = Field(64, ge=1, le=SESSIONS_MAX, description="most sessions at a time")
    max_context: int = Field(
        4096, ge=2, description="most tokens of prompt and output together; the model's own limit if that is less"
    )
    kv_memory: str = Field(
        AUTO_KV_MEMORY,
        pattern=KV_MEMORY_PATTERN,
        description="most memory for keys and values, which all sessions share: a size such as 2GiB or 500MB, or a "
        "share such as 50% of what a GPU has left, or on a CPU of what the machine or its container allows beside the "
        "weights; auto: what all sessions could need, at most 50%, or on a GPU 88% less what a step takes",
    )
    memory_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="the part of that memory which is this worker's, where others use the machine or the GPU too; "
        "outrider up divides it equally",
    )
    cores: str = Field("", pattern=CORES_PATTERN, description=CORES_DESCRIPTION)
    cores_batch: str = Field(
        "",
        pattern=CORES_PATTERN,
        description="processor cores that steps over a prompt's tokens may use too, though they are others' (those of "
        "--cores count once): a thread on each, which stays away while somebody else works there; compiled "
        "forward passes alone do (Linux only)",
    )
    num_threads: int = Field(
        default_factory=default_num_threads,
        ge=1,
        le=THREADS_MAX,
        description="most threads for tensor arithmetic on the CPU: a compiled forward pass takes as many of them as "
        "make it fastest, by its number of tokens; default: OMP_NUM_THREADS, else half of the cores that affinity and "
        "the container's quota allow, and no more than --cores names",
    )
    compile: Literal["auto", "first", "on", "off"] = Field(
        "auto",
        description="compiled forward passes, twice as fast or more (a minute, once for a model and machine); auto: "
        "serve at once, compile meanwhile; first: compile, then serve; both serve uncompiled where compiling cannot "
        "work, and on refuses to",
    )
    compile_cache: Path = Field(
        default_factory=default_compile_cache,
        description="folder for compiled forward passes, as large as the models; what lies there is run, so keep it "
        "private",
    )
    attention_backend: str = Field(
        "auto",
        description="how layers attend: tree (kernels in Triton over pages, on GPUs; tried at start), torch (session "
        "by session, anywhere; on a GPU steps are then neither compiled nor captured), native (machine code, on CPUs); "
        "auto: on a GPU tree, or torch where that does not work; on a CPU native, or torch where that cannot be built",
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
    metrics: str = Field(
        "", description="host:port that answers GET /metrics for Prometheus, /healthz and /readyz; empty: none does"
    )
    vllm_metrics: bool = Field(False, description=VLLM_METRICS_DESCRIPTION)
    stall_seconds: float = Field(
        60.0,
        gt=0,
        description="a step that takes so long makes the worker not ready until it ends; no step should",
    )
    drain_seconds: float = Field(
        20.0, ge=0, le=DRAIN_SECONDS_MAX, description="after SIGTERM: time that running sessions get to finish"
    )

    @property
    def num_ranks(self) -> int:
        """Over how many devices the model is divided."""
        return 1

    def compiler_environment(self) -> dict[str, str]:
        """On a GPU where torch's compiler and Triton keep what they made: in the compile cache, which may lie on a
        volume. For a process that has not imported them yet."""
        if self.device == "cpu":
            return {}
        return {
            "TORCHINDUCTOR_CACHE_DIR": str(self.compile_cache / "inductor"),
            "TRITON_CACHE_DIR": str(self.compile_cache / "triton"),
        }

    def problems(self) -> Iterator[Problem]:
        """See `Settings`. Whether a folder holds a model that can be served is found when it is loaded."""
        yield from super().problems()
        if self.metrics:
            yield from self._listening("metrics")
        if self.weights == "int8" and not (self.drafts and self.device == "cpu"):
            yield Problem("weights", "int8 is for a drafter on a CPU: a target's tokens must be its own; leave it out")
        if self.tls_cert and not self.tls_ca:
            yield Problem("tls_ca", "must be set: a worker takes calls from certificates of this authority alone")
        if text := no_model(self.model):
            yield Problem("model", text)
        if self.ngram_table and (text := lacking(NGRAM_TABLE, "ngram-table")):
            yield Problem("ngram_table", f"an n-gram table {text}")
        elif self.ngram_table and not os.path.isfile(self.ngram_table):
            yield Problem(
                "ngram_table",
                f"there is no file {self.ngram_table!r}; python -m recipes.ngram_table in a checkout writes one",
            )
