"""`outrider chat`: what is asked of the coordinator, and what is shown."""

from __future__ import annotations

import asyncio
import sys

import pytest

from outrider.cli.chat import Conversation
from outrider.client import GenerationOptions
from outrider.core.protocol.errors import InvalidRequestError
from outrider.rpc import wire
from outrider.v1 import generation_pb2 as pb
from tests.cli.test_display import pipe, terminal, written
from tests.client.scripted import ROUNDS, TEXT, ScriptedCoordinator, serving, started, tokens


def asked(coordinator: ScriptedCoordinator) -> list[list[tuple[str, str]]]:
    """Roles and contents of the messages of each request."""
    return [[(each.role, each.content) for each in request.chat.messages] for request in coordinator.requests]


async def test_each_line_is_answered_with_all_that_was_said_before() -> None:
    coordinator = ScriptedCoordinator()
    out = pipe()
    async with serving(coordinator) as address:
        conversation = Conversation(address, GenerationOptions(max_tokens=5), "Be brief.", out)
        await conversation.say("Hello")
        await conversation.say("More")
        await conversation.say("/reset")
        await conversation.say("Again")
    system, hello = ("system", "Be brief."), ("user", "Hello")
    assert asked(coordinator) == [
        [system, hello],
        [system, hello, ("assistant", TEXT), ("user", "More")],
        [system, ("user", "Again")],
    ]
    assert written(out) == f"{TEXT}\n" * 3
    assert {request.max_tokens for request in coordinator.requests} == {5}


async def test_speculation_can_be_turned_off_and_on() -> None:
    coordinator = ScriptedCoordinator()
    async with serving(coordinator) as address:
        conversation = Conversation(address, GenerationOptions(), None, pipe())
        for line in ("a", "/speculation off", "b", "/speculation on", "c", "/speculation perhaps", "d"):
            await conversation.say(line)
    assert [request.speculation.enabled for request in coordinator.requests] == [True, False, True, True]


async def test_an_answer_that_is_ended_early_was_said_as_far_as_it_came() -> None:
    coordinator = ScriptedCoordinator([started(), tokens(2, (10, "def ", pb.TOKEN_ORIGIN_TARGET)), ...])
    out = terminal()
    shown = asyncio.Event()
    out.out = lambda *args, **kwargs: shown.set()  # pyright: ignore[reportAttributeAccessIssue]
    async with serving(coordinator) as address:
        conversation = Conversation(address, GenerationOptions(), None, out)
        saying = asyncio.create_task(conversation.say("Hello"))
        await shown.wait()
        saying.cancel()
        await asyncio.wait({saying})
        await coordinator.left.wait()
        coordinator.script = ROUNDS
        await conversation.say("Go on")
    assert asked(coordinator)[1] == [("user", "Hello"), ("assistant", "def "), ("user", "Go on")]


async def test_a_terminal_is_told_what_it_took_and_of_errors_and_goes_on() -> None:
    coordinator = ScriptedCoordinator()
    out = terminal(no_color=True)
    async with serving(coordinator) as address:
        conversation = Conversation(address, GenerationOptions(), None, out)
        conversation.greet()
        await conversation.say("Hello")
        coordinator.script = [InvalidRequestError([("messages", "too many")])]  # pyright: ignore[reportArgumentType]
        await conversation.say("More")
        coordinator.script = ROUNDS
        await conversation.say("Again")
        await conversation.say("/what?")
    shown = written(out)
    assert "6 tokens, 12.0 tokens/s, 2.00 tokens per round, the drafter left" in shown
    assert "error: " in shown
    assert "too many" in shown
    assert shown.count("/reset") == 1
    assert asked(coordinator)[2] == [("user", "Hello"), ("assistant", TEXT), ("user", "Again")], "More was refused"


@pytest.mark.parametrize(("script", "code", "words"), [(ROUNDS, 0, ""), ([InvalidRequestError([])], 2, "error:")])
async def test_the_command_answers_lines_until_they_end(script: list[object], code: int, words: str) -> None:
    coordinator = ScriptedCoordinator(script)
    async with serving(coordinator) as address:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "outrider.cli", "chat", "--address", address, "--temperature", "0.5"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate(b"Hello\n\n  More \n/exit\nnever\n")
    assert process.returncode == code
    assert words in err.decode()
    if code == 0:
        assert out.decode() == f"{TEXT}\n" * 2
        assert asked(coordinator)[1] == [("user", "Hello"), ("assistant", TEXT), ("user", "More")]
        _, options = wire.decode_generate_request(coordinator.requests[0])
        assert (options.sampling.temperature, options.draw_seed) == (0.5, True)
