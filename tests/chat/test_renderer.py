"""Rendering in a process of its own: the same prompts, and templates that no thread could be rid of."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.chat.template import ChatTemplate
from coordinator.renderer import Renderer
from outrider.core.protocol.chat_prompt import ChatPrompt
from outrider.core.protocol.errors import InvalidRequestError
from tests.chat.conversations import TOOLS, user
from tests.chat.templates import template

HELLO = ChatPrompt(messages=[user("Hello é 👩‍👩‍👧")])


def of(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, {"bos_token": "<s>"})


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    renderer = Renderer(seconds_max=0.2)
    yield renderer
    await renderer.close()


async def test_prompts_are_those_of_the_template(renderer: Renderer) -> None:
    found = template("chatml")
    conversations = [
        ChatPrompt(messages=case.messages, tools=case.tools, chat_template_kwargs=case.kwargs)
        for case in TOOLS.values()
    ]
    prompts = await asyncio.gather(*(renderer.render(found, each) for each in conversations))
    assert prompts == [found.render(each.messages, each.tools) for each in conversations]
    assert await renderer.render(of("{{ bos_token }}{{ messages[0].content }}"), HELLO) == "<s>Hello é 👩‍👩‍👧"


async def test_refusals_are_those_of_the_template(renderer: Renderer) -> None:
    with pytest.raises(InvalidRequestError, match="messages: the model's chat template refuses them: not so"):
        await renderer.render(of("{{ raise_exception('not so') }}"), HELLO)
    with pytest.raises(InvalidRequestError, match="they are no JSON"):
        await renderer.render(of(""), ChatPrompt(messages=[user({1, 2})]))


ENDLESS = {
    "loops": "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "computes": "{{ 9 ** (9 ** 9) }}",
}


@pytest.mark.parametrize("title", ENDLESS)
async def test_a_template_without_end_is_ended(renderer: Renderer, title: str) -> None:
    with pytest.raises(InvalidRequestError, match="takes too long"):
        await renderer.render(of(ENDLESS[title]), HELLO)
    assert await renderer.render(of("next"), HELLO) == "next"


async def test_a_template_that_fills_memory_is_refused(renderer: Renderer) -> None:
    with pytest.raises(InvalidRequestError, match=r"fails on them .MemoryError"):
        await renderer.render(of("{% set a = 'x' * 10 ** 10 %}"), HELLO)
    assert await renderer.render(of("next"), HELLO) == "next"


async def test_what_lies_in_the_present_folder_shadows_nothing(
    renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("coordinator.py", "outrider.py", "signal.py"):
        (tmp_path / name).write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    assert await renderer.render(of("{{ bos_token }}"), HELLO) == "<s>"


async def test_the_process_ends_with_its_input() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "coordinator.chat", "1"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert await process.communicate(b"") == (b"", None)
    assert process.returncode == 0


async def test_a_request_that_is_given_up_leaves_nothing_to_the_next(renderer: Renderer) -> None:
    assert await renderer.render(of("first"), HELLO) == "first"
    given_up = asyncio.create_task(renderer.render(of(ENDLESS["loops"]), HELLO))
    await asyncio.wait({given_up}, timeout=0)
    given_up.cancel()
    assert await renderer.render(of("next"), HELLO) == "next"
