"""Renderer: conversations become prompts in a process of their own, which a bad template may end."""

from __future__ import annotations

import asyncio
import json
import signal
from asyncio.subprocess import PIPE, Process
from dataclasses import fields
from typing import Any

from coordinator.chat.messages import check_number
from coordinator.chat.template import ChatTemplate
from outrider.core.protocol.chat_prompt import ChatPrompt
from outrider.core.protocol.errors import FieldViolation, InvalidRequestError
from outrider.machine.tether import untethered

SECONDS_MAX = 0.5
"""Processor time that a template may take for one conversation, so that a refusal comes within a second. Published ones
take a few thousandths of it."""


class Renderer:
    """One process of `coordinator/chat/__main__.py`, started by the first conversation and again after it was lost."""

    def __init__(self, seconds_max: float = SECONDS_MAX) -> None:
        self._seconds_max = seconds_max
        self._process: Process | None = None
        self._one_at_a_time = asyncio.Lock()

    async def render(self, template: ChatTemplate, conversation: ChatPrompt) -> str:
        """What `ChatTemplate.render` says, and raises, of a conversation.

        Raises InvalidRequestError also where the template takes too much time or memory.
        """
        check_number(conversation.messages)
        request = {
            "templates": template.templates,
            "special_tokens": template.special_tokens,
            "conversation": {field.name: getattr(conversation, field.name) for field in fields(conversation)},
        }
        try:
            message = json.dumps(request).encode()
        except (RecursionError, TypeError, ValueError) as error:
            raise _refused(f"they are no JSON ({error})") from error
        async with self._one_at_a_time:
            answer = await self._ask(message)
        if "prompt" in answer:
            return answer["prompt"]
        raise InvalidRequestError([FieldViolation(*violation) for violation in answer["violations"]])

    async def close(self) -> None:
        """Ends the process. A later conversation starts another one."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _ask(self, message: bytes) -> dict[str, Any]:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *untethered("coordinator.chat", str(self._seconds_max)), stdin=PIPE, stdout=PIPE
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(len(message).to_bytes(4) + message)
            await process.stdin.drain()
            size = int.from_bytes(await process.stdout.readexactly(4))
            return json.loads(await process.stdout.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            code = await process.wait()
            what = "takes too long" if code == -signal.SIGPROF else f"ended its process (exit status {code})"
            raise _refused(f"the model's chat template {what}; use completions, or mend the template") from error
        except asyncio.CancelledError:
            await self.close()  # or its answer would be taken for the next one's
            raise


def _refused(description: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation("messages", description)])
