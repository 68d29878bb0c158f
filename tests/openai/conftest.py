"""One stack with an HTTP door for all tests of this room, and OpenAI's own clients for it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
import torch
from hypothesis import settings
from openai import AsyncOpenAI, OpenAI
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from coordinator.openai.app import make_app
from outrider.engine.engine import STEP_TOKENS_MAX, Engine, StepOutput
from outrider.engine.jobs import Job
from outrider.http.server import HttpServer
from outrider.worker.serving import SWITCH_INTERVAL_SECONDS
from tests.e2e.stack import MODELS, RunningWorker, Stack, coordinator, load_tiny, worker
from tests.openai.dictated import save_dictated

settings.register_profile("fuzz-http", max_examples=5000)

MAX_REQUESTS = 8
"""Completions that this coordinator runs at a time."""

BUNDLED_TOKENS = 4096
"""Size of the bundled vocabulary."""

TEMPLATE = """{% for message in messages %}[{{ message.role }}] {{ message.content }}
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""
"""The random model's chat template."""

sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)  # all services share this interpreter


POISON = 13
"""First token of a prompt whose line no step survives once it is longer than POISONED_TOKENS."""
POISONED_TOKENS = 8


class FragileEngine(Engine):
    """An engine that fails for poisoned lines."""

    def step(self, jobs: Sequence[Job], max_line_tokens: int = STEP_TOKENS_MAX) -> StepOutput:
        if any(job.line[0] == POISON and len(job.line) > POISONED_TOKENS for job in jobs):
            raise RuntimeError("poisoned")
        return super().step(jobs, max_line_tokens)


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


def random_target(vocab_size: int = BUNDLED_TOKENS) -> PreTrainedModel:
    """A tiny model with random weights and the bundled vocabulary: it writes broken characters, too."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=vocab_size,
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


def saved(model: PreTrainedModel, folder: Path, template: str = TEMPLATE, markup: Sequence[str] = ()) -> Path:
    """A model's folder. `markup` are more tokens, behind the bundled ones."""
    model.save_pretrained(folder)
    tokenizer = Tokenizer.from_file(str(MODELS / "target" / "tokenizer.json"))
    tokenizer.add_tokens(list(markup))
    tokenizer.save(str(folder / "tokenizer.json"))
    shutil.copy(MODELS / "target" / "tokenizer_config.json", folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """A random target and its drafter behind HTTP."""
    folder = tmp_path_factory.mktemp("models")
    model = random_target()
    engine = FragileEngine(random_target(), max_sessions=MAX_REQUESTS, max_context=1024)
    target = replace(load_tiny(saved(model, folder / "target")), engine=engine)
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


@asynccontextmanager
async def http_at(stack: Stack) -> AsyncIterator[str]:
    """The URL of another HTTP door to a stack, which is not told to be ready."""
    http = HttpServer(make_app(stack.service), "127.0.0.1:0")
    await http.open()
    yield f"http://127.0.0.1:{http.port}"
    await http.stop(None)


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def dictated(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The URL of a model that calls tools. Its drafter is always right, so that a round has many tokens."""
    folder = save_dictated(tmp_path_factory.mktemp("dictated") / "target")
    async with (
        worker(load_tiny(folder)) as verify,
        worker(load_tiny(folder), draft=True) as draft,
        coordinator(verify.address, draft.address) as stack,
        http_at(stack) as url,
    ):
        yield url


async def until_idle(served: Served) -> None:
    """Returns when nothing runs any more at the coordinator nor at the workers."""
    while (await served.stack.client.server_info()).num_running:
        pass
    await served.verify.all_slots_free()
    await served.draft.all_slots_free()


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
