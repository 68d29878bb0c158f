"""The Python of docs/calling.md runs as it stands there."""

from __future__ import annotations

import re
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import pytest

from outrider.client import SyncGenerationClient
from tests.client.scripted import TEXT
from tests.client.test_sync import served
from tests.house.pages import PAGES, blocks

EXAMPLES = blocks(PAGES["docs/calling.md"], "python")


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_runs(example: str) -> None:
    said = StringIO()
    with served() as (address, coordinator), redirect_stdout(said):
        names: dict[str, Any] = {}
        exec(compile(re.sub(r"127\.0\.0\.1:\d+", address, example), "docs/calling.md", "exec"), names)
        for value in names.values():
            if isinstance(value, SyncGenerationClient):
                value.close()
    if coordinator.requests:
        assert TEXT in said.getvalue()


def test_both_clients_are_shown() -> None:
    assert any("asyncio.run" in example for example in EXAMPLES)
    assert any("SyncGenerationClient(" in example for example in EXAMPLES)
