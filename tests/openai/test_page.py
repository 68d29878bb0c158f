"""What docs/http.md tells people to send is answered as it says."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from tests.house.pages import PAGES, blocks
from tests.openai.conftest import Served

pytestmark = pytest.mark.asyncio(loop_scope="package")

PAGE = PAGES["docs/http.md"]
ADDRESS = "127.0.0.1:8080"


async def test_the_python_examples_run(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(blocks(PAGE, "python"))
    assert ADDRESS in code
    await asyncio.to_thread(exec, code.replace(ADDRESS, served.url.removeprefix("http://")), {})
    assert "num_spec_steps" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
async def test_the_curl_examples_run(served: Served) -> None:
    (script,) = (block for block in blocks(PAGE, "sh") if block.startswith("curl"))
    script = script.replace(ADDRESS, served.url.removeprefix("http://"))
    process = await asyncio.create_subprocess_exec("sh", "-ec", script, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    assert output.count(b'"finish_reason":"length"') == 3
    assert b"data: [DONE]" in output
    assert output.endswith(b"}")
