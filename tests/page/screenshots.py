"""`python -m tests.page.screenshots URL FOLDER`: pictures of the page of a running stack, for the README."""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path

from PIL import Image

from tests.page.browser import Browser, chromium

PROMPT = "def read_config(path):\n    with open(path) as file:\n"
SEED = "11"
COLOURS = 160
"""As many as a picture has that shall be small."""
OVER = "!document.getElementById('run').disabled"

# Of the rounds the one whose tree has most to tell: guesses of every fate.
PICK = """(() => {
  const slider = document.getElementById("round");
  let best = [0, 0];
  for (let at = 0; at <= Number(slider.max); at++) {
    slider.value = at;
    slider.dispatchEvent(new Event("input"));
    const count = (kind) => Math.min(document.querySelectorAll(`#tree .node.${kind}`).length, 4);
    const told = count("accepted") * 2 + count("dropped") + count("live") + 3 * count("recovered") + count("bonus");
    if (told > best[1]) best = [at, told];
  }
  slider.value = best[0];
  slider.dispatchEvent(new Event("input"));
  document.activeElement.blur();
})()"""


async def picture(browser: Browser, url: str, *, width: int, dark: bool, race: bool) -> bytes:
    """The page after an answer."""
    tab = await browser.open(url, width=width, height=900, dark=dark)
    await tab.until("document.getElementById('models').textContent.includes(';')")
    for field, text in (("#text", PROMPT), ("[name=seed]", SEED), ("[name=maxTokens]", "160")):
        await tab.fill(field, text)
    await tab.click("#race" if race else "#run")
    await tab.until(OVER)
    await tab.value(PICK)
    return await tab.shot()


async def main(url: str, folder: Path) -> None:
    """Writes page-light.png, page-dark.png and page-phone.png."""
    async with chromium() as browser:
        for name, width, dark, race in (
            ("page-light", 1100, False, False),
            ("page-dark", 1100, True, True),
            ("page-phone", 390, False, False),
        ):
            content = await picture(browser, url, width=width, dark=dark, race=race)
            image = Image.open(io.BytesIO(content)).convert("RGB").quantize(COLOURS)
            image.save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
