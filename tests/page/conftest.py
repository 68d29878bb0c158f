"""One stack with the page for all tests of this room, and one browser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from coordinator.openai.app import make_app
from coordinator.openai.authorization import OPEN_PATHS, Authorization
from coordinator.page.site import PATHS, add_page
from coordinator.tokens import Tokens
from outrider.http.server import HttpServer
from outrider.token_file import TokenEntry, new_token, sha256_of, write_tokens
from tests.e2e.stack import RunningWorker, Stack, bundled, coordinator, load_tiny, worker
from tests.openai.conftest import blurred, random_target, saved
from tests.page.browser import CHROMIUM, Browser, chromium
from tests.page.relay import Relay, relay_to


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models are."""
    return tmp_path_factory.mktemp("models")


@asynccontextmanager
async def page_of(stack: Stack, tokens: Tokens | None = None) -> AsyncIterator[HttpServer]:
    """The HTTP door of a stack, page included; with `tokens` it is for who has one."""
    authorization = None
    if tokens is not None:
        authorization = partial(
            Authorization, tokens=tokens, on_refused=lambda reason: None, open_paths=OPEN_PATHS | PATHS
        )
    app = make_app(stack.service, authorization)
    add_page(app)
    http = HttpServer(app, "127.0.0.1:0")
    await http.open()
    http.set_ready(True)
    yield http
    await http.stop(None)


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def verifier(folder: Path) -> AsyncIterator[RunningWorker]:
    """A random target."""
    model = random_target()
    model.config.eos_token_id = model.generation_config.eos_token_id = None  # every answer has its length
    async with worker(load_tiny(saved(model, folder / "target"))) as running:
        yield running


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def served(verifier: RunningWorker, folder: Path) -> AsyncIterator[tuple[Relay, str]]:
    """The target with a drafter that is often right, and a relay to their page with its URL."""
    draft = saved(blurred(random_target()), folder / "draft")
    async with (
        worker(load_tiny(draft), draft=True) as drafter,
        coordinator(verifier.address, drafter.address) as stack,
        page_of(stack) as http,
        relay_to(http.port) as relay,
    ):
        yield relay


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def without_drafter() -> AsyncIterator[str]:
    """The URL of a page of the bundled target alone, which greedily repeats itself."""
    async with (
        worker(bundled("target")) as fresh,
        coordinator(fresh.address, "") as stack,
        page_of(stack) as http,
    ):
        yield f"http://127.0.0.1:{http.port}"


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def guarded(verifier: RunningWorker, folder: Path) -> AsyncIterator[tuple[str, str]]:
    """The URL of a page that wants to know who asks, and a token."""
    token = new_token()
    write_tokens(folder / "tokens.json", [TokenEntry(name="ann", sha256=sha256_of(token))])
    async with (
        coordinator(verifier.address, "") as stack,
        page_of(stack, Tokens(folder / "tokens.json")) as http,
    ):
        yield f"http://127.0.0.1:{http.port}", token


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def browser() -> AsyncIterator[Browser]:
    """The browser."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine; Debian's package chromium has it")
    async with chromium() as browser:
        yield browser
