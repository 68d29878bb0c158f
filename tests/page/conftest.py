"""One stack with the page for all tests of this room, and one browser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from coordinator.http import HttpServer
from coordinator.openai.app import make_app
from coordinator.page.site import add_page
from tests.e2e.stack import load_tiny, stack
from tests.openai.conftest import blurred, random_target, saved
from tests.page.browser import CHROMIUM, Browser, chromium
from tests.page.relay import Relay, relay_to


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models are."""
    return tmp_path_factory.mktemp("models")


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def served(folder: Path) -> AsyncIterator[tuple[Relay, str]]:
    """A random target with its drafter, and a relay to their page with its URL."""
    model = random_target()
    target, draft = saved(model, folder / "target"), saved(blurred(model), folder / "draft")
    async with stack(load_tiny(target), load_tiny(draft)) as running:
        app = make_app(running.service)
        add_page(app)
        http = HttpServer(app, "127.0.0.1:0")
        await http.open()
        http.set_ready(True)
        async with relay_to(http.port) as relay:
            yield relay
        await http.stop(None)


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def browser() -> AsyncIterator[Browser]:
    """The browser."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine; Debian's package chromium has it")
    async with chromium() as browser:
        yield browser
