"""Chromium without a window, driven by the DevTools protocol over two pipes: nothing but the browser is needed."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

MESSAGE_BYTES_MAX = 2**26
"""Longest message of the browser: a large screenshot."""

_FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    *(("--no-sandbox",) if os.getuid() == 0 else ()),
)

_UNTIL = """new Promise((resolve) => {
  const check = () => { if (%s) { observer.disconnect(); resolve(); } };
  const observer = new MutationObserver(check);
  observer.observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
  check();
})"""


class Browser:
    """A running browser. Messages are JSON that ends with a zero byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.tabs: dict[str, Tab] = {}

    async def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """The result of a command. Raises RuntimeError if it failed."""
        number = next(self._numbers)
        answered = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        self._writer.write(json.dumps(message).encode() + b"\0")
        answer = await answered
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    async def listen(self) -> None:
        """Takes what the browser says, to its end."""
        while True:
            message = json.loads((await self._reader.readuntil(b"\0"))[:-1])
            if "id" in message:
                self._answers.pop(message["id"]).set_result(message)
            elif (tab := self.tabs.get(message.get("sessionId", ""))) is not None:
                tab.hear(message["method"], message["params"])

    async def open(self, url: str, *, width: int = 1200, height: int = 900, dark: bool = False) -> Tab:
        """A new tab, when its page is loaded."""
        target = (await self.send("Target.createTarget", url="about:blank"))["targetId"]
        session = (await self.send("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        tab = self.tabs[session] = Tab(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            await tab.send(f"{domain}.enable")
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await tab.send("Emulation.setEmulatedMedia", features=features)
        await tab.size(width, height)
        await tab.send("Page.navigate", url=url)
        await tab.loaded.wait()
        return tab


class Tab:
    """One page, and what went wrong in it."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.loaded = asyncio.Event()
        self.faults: list[str] = []
        """Errors of scripts, of the console, and of what was loaded."""
        self.requests: list[dict[str, Any]] = []
        """All that was asked for, as the DevTools protocol tells it: `url`, `headers` and so on."""

    def hear(self, method: str, params: dict[str, Any]) -> None:
        """Takes an event."""
        match method:
            case "Page.loadEventFired":
                self.loaded.set()
            case "Network.requestWillBeSent":
                self.requests.append(params["request"])
            case "Runtime.exceptionThrown":
                self.faults.append(str(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in {"error", "assert"}:
                self.faults.append(str(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.faults.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            case _:
                pass

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command to this tab."""
        return await self._browser.send(method, self._session, **params)

    async def value(self, expression: str) -> Any:
        """What an expression of JavaScript comes to, promises awaited."""
        found = await self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, condition: str) -> None:
        """Returns when an expression holds; it is looked at whenever the page changes."""
        await self.value(_UNTIL % condition)

    async def text(self, selector: str) -> str:
        """The text of an element."""
        return await self.value(f"document.querySelector({json.dumps(selector)}).textContent")

    async def count(self, selector: str) -> int:
        """How many elements there are."""
        return await self.value(f"document.querySelectorAll({json.dumps(selector)}).length")

    async def fill(self, selector: str, text: str) -> None:
        """Writes into a field, in place of what stands there."""
        await self.value(f"(field => {{ field.focus(); field.select(); }})(document.querySelector({selector!r}))")
        await self.send("Input.insertText", text=text)

    async def choose(self, selector: str, value: str) -> None:
        """Sets a list to one of its values."""
        await self.value(f"void (document.querySelector({selector!r}).value = {value!r})")

    async def click(self, selector: str) -> None:
        """Clicks an element."""
        await self.value(f"document.querySelector({json.dumps(selector)}).click()")

    async def press(self, key: str, *, ctrl: bool = False) -> None:
        """Presses a key and lets go of it."""
        codes = {"Enter": 13, "Escape": 27, "Tab": 9, " ": 32}
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key], "modifiers": 2 if ctrl else 0}
        await self.send("Input.dispatchKeyEvent", type="keyDown", **pressed)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **pressed)

    async def size(self, width: int, height: int) -> None:
        """The window's size in pixels; a narrow one is a phone's."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    async def shot(self) -> bytes:
        """All of the page as PNG."""
        found = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(found["data"])


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser with a profile of its own, which is gone afterwards."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            # It hears on descriptor 3 and answers on 4.
            *("sh", "-c", 'exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1'),
            *(CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=MESSAGE_BYTES_MAX,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        browser = Browser(process.stdout, process.stdin)
        listening = asyncio.create_task(browser.listen())
        try:
            yield browser
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
