"""One stack with an HTTP door for all tests of this room, and OpenAI's own clients for it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
import torch
from openai import AsyncOpenAI, OpenAI
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from coordinator.http import HttpServer
from coordinator.openai.app import make_app
from outrider.worker.serving import SWITCH_INTERVAL_SECONDS
from tests.e2e.stack import MODELS, RunningWorker, Stack, coordinator, load_tiny, worker

MAX_REQUESTS = 8
"""Completions that this coordinator runs at a time."""

sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)  # all services share this interpreter


@dataclass(frozen=True, slots=True)
class Served:
    """The services, and where their HTTP door is."""

    stack: Stack
    verify: RunningWorker
    draft: RunningWorker
    http: HttpServer

    @property
    def url(self) -> str:
        """Without a slash at its end."""
        return f"http://127.0.0.1:{self.http.port}"


def random_target() -> PreTrainedModel:
    """A tiny model with random weights and the bundled vocabulary: it writes broken characters, too."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def blurred(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, a little beside itself: a drafter that is right often and not always."""
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.02 * torch.randn_like(weights)
    return model


def saved(model: PreTrainedModel, folder: Path) -> Path:
    """A model's folder."""
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS / "target" / name, folder)
    return folder


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """A random target and its drafter behind HTTP."""
    folder = tmp_path_factory.mktemp("models")
    model = random_target()
    target = load_tiny(saved(model, folder / "target"))
    async with (
        worker(target) as verify,
        worker(load_tiny(saved(blurred(model), folder / "draft")), draft=True) as draft,
        coordinator(verify.address, draft.address, max_requests=MAX_REQUESTS) as stack,
    ):
        http = HttpServer(make_app(stack.service), "127.0.0.1:0")
        await http.open()
        http.set_ready(True)
        yield Served(stack, verify, draft, http)
        await http.stop(None)


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def client(served: Served) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's asynchronous client. It does not try again by itself."""
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="package")
def sync_client(served: Served) -> Iterator[OpenAI]:
    """OpenAI's synchronous client, for threads."""
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def plain(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    """A client that knows nothing of OpenAI."""
    async with httpx.AsyncClient(base_url=served.url, timeout=30) as client:
        yield client
