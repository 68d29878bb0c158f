"""Chat in the terminal: lines of the user, answers of a running coordinator, and commands with a slash."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from outrider.cli.display import Display, legend
from outrider.client import (
    NO_CREDENTIALS,
    Answer,
    ChatPrompt,
    Credentials,
    Event,
    Finished,
    GenerationClient,
    GenerationOptions,
    Tokens,
    gather,
)
from outrider.core.protocol.errors import OutriderError, WorkerUnavailableError
from outrider.core.protocol.printable import uncontrolled

HELP = """\
/reset               forget what was said
/speculation on|off  let drafters guess, or not; the text is the same
/help                this
/exit                leave, as does the end of the input
"""


class Conversation:
    """What was said, and how the next answer is made."""

    def __init__(
        self,
        address: str,
        options: GenerationOptions,
        system: str | None,
        out: Console,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        """`system`, if there is one, stands before all that is said."""
        self._address = address
        self._credentials = credentials
        self._options = options
        self._beginning = [] if system is None else [{"role": "system", "content": system}]
        self._messages = list(self._beginning)
        self._out = out

    def greet(self) -> None:
        """Says what the colours mean and where commands are told."""
        if self._out.is_terminal:
            self._out.print(legend())
            self._tell("/help tells the commands")

    async def say(self, line: str) -> None:
        """Obeys a command, or answers. Where that is cancelled, as much of the answer as came was said.

        Raises OutriderError; in a terminal that is told, and the conversation goes on.
        """
        if line.startswith("/"):
            self._obey(line)
            return
        try:
            await self._answer(line)
        except OutriderError as error:
            if not self._out.is_terminal:
                raise
            self._tell(f"error: {error}")

    def _obey(self, line: str) -> None:
        match line.split():
            case ["/reset"]:
                self._messages = list(self._beginning)
                self._tell("forgotten")
            case ["/speculation", "on" | "off" as wanted]:
                self._options = replace(self._options, speculate=wanted == "on")
                self._tell(f"speculation is {wanted}")
            case _:
                self._tell(HELP.rstrip())

    async def _answer(self, line: str) -> None:
        said = ""
        display = Display(self._out)

        def show(event: Event) -> None:
            nonlocal said
            said += event.text if isinstance(event, Tokens | Finished) else ""
            display.show(event)

        prompt = ChatPrompt(messages=[*self._messages, {"role": "user", "content": line}])
        try:
            async with GenerationClient(self._address, self._credentials) as client:
                answer = await gather(client.generate(prompt, self._options), show)
            self._tell(_summary(answer))
        except asyncio.CancelledError:
            self._remember(prompt, said)
            raise
        except WorkerUnavailableError as error:
            raise WorkerUnavailableError(f"{self._address}: {error} (`outrider up` starts the services)") from error
        self._remember(prompt, said)

    def _remember(self, prompt: ChatPrompt, said: str) -> None:
        self._messages = [*prompt.messages, {"role": "assistant", "content": said}]

    def _tell(self, text: str) -> None:
        if self._out.is_terminal:
            self._out.print(Text(uncontrolled(text), "dim"))


def hold(conversation: Conversation, read: Callable[[], str]) -> None:
    """Says each line that `read` returns, until it raises EOFError or returns /exit. Ctrl-C ends an answer early.

    Raises what `Conversation.say` raises.
    """
    conversation.greet()
    with asyncio.Runner() as runner:
        while True:
            try:
                line = read().strip()
                if line == "/exit":
                    return
                if line:
                    runner.run(conversation.say(line))
            except KeyboardInterrupt:
                print()
            except EOFError:
                return


def _summary(answer: Answer) -> str:
    """What the answer took, in one line."""
    (completion,) = answer.completions
    finished = completion.finished
    num_tokens = finished.usage.num_generated_tokens
    per_second = num_tokens / finished.timings.total_ms * 1000.0 if finished.timings.total_ms else 0.0
    parts = [
        f"{num_tokens} tokens",
        f"{per_second:.1f} tokens/s",
        f"{answer.speculation.acceptance_length:.2f} tokens per round",
        finished.mode_reason or finished.mode.name.lower().replace("_", " "),
    ]
    return ", ".join(parts)
