"""The page in a real browser: typing, streaming, inks, roll-backs, the race, a phone, a cut, and nobody else asked."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.page.browser import Browser, Tab
from tests.page.relay import Relay

pytestmark = pytest.mark.asyncio(loop_scope="package")

DRAFTED = {"accepted", "recovered", "bonus", "target"}
OVER = "!document.getElementById('run').disabled"
NUM_TOKENS = "Array.from(document.querySelectorAll('#with .text [data-round]')).length"
TOKENS = "Array.from(document.querySelectorAll('#with .text [data-round]'), (each) => each.textContent).join('|')"
NOTES_A_CUT = f"""new MutationObserver(() => {{
  if (document.getElementById('status').textContent.startsWith('The connection was cut')) {{
    window.numTokensAtCut ??= {NUM_TOKENS};
  }}
}}).observe(document.getElementById('status'), {{childList: true}}), undefined"""
SEEDS = range(1, 9)
"""Which kinds of tokens there are depends on who was quicker; in so many answers of 150 tokens all kinds are met."""


@pytest_asyncio.fixture(loop_scope="package")
async def tab(served: tuple[Relay, str], browser: Browser) -> AsyncIterator[Tab]:
    """The page; at the end nothing has gone wrong in it, and nobody but the server has been asked."""
    _, url = served
    tab = await browser.open(url)
    await tab.until("document.getElementById('models').textContent.startsWith('target')")
    yield tab
    assert tab.faults == []
    assert {asked["url"].split("/")[2] for asked in tab.requests} == {url.removeprefix("http://")}


async def asked_for(tab: Tab, *, seed: int, max_tokens: int = 150, temperature: float = 0.7) -> None:
    await tab.fill("#text", "def walk(")
    await tab.fill("[name=seed]", str(seed))
    await tab.fill("[name=maxTokens]", str(max_tokens))
    await tab.fill("[name=temperature]", str(temperature))


async def test_all_kinds_of_drafted_tokens_and_a_roll_back_are_seen(tab: Tab) -> None:
    assert "2048" not in await tab.text("#models")
    assert await tab.text("#models") == "target, 1024 tokens of context; drafts by draft"
    met: set[str] = set()
    has_rolled_back = False
    for seed in SEEDS:
        await asked_for(tab, seed=seed, temperature=0.7 * (seed % 2))
        await tab.press("Enter", ctrl=True)
        await tab.until(OVER)
        assert (await tab.text("#status")).startswith(f"Done: 150 tokens with seed {seed}"), await tab.text("#error")
        met |= {ink for ink in DRAFTED if await tab.count(f"#with .text .{ink}")}
        has_rolled_back |= bool(await tab.count("svg .rollback")) and await tab.text("#void") != "none yet"
        if met == DRAFTED and has_rolled_back:
            break
    assert met == DRAFTED
    assert has_rolled_back
    assert await tab.value(NUM_TOKENS) == 150
    assert (await tab.text("#with .text")).startswith("def walk(")
    for mark in ("rect.draft", "rect.verify", "text.come"):
        assert await tab.count(f"#lane-scroll {mark}"), mark
    assert (await tab.text("#mode")).startswith("A drafter guessed")
    assert await tab.count("#reasons li")
    assert await tab.count("#recent tbody tr") == seed
    # Each round can be looked at again, by keyboard too.
    numbers = range(int(await tab.value("document.getElementById('round').max")) + 1)
    kinds: set[str] = set()
    for _ in numbers:
        await tab.click("#earlier")
        kinds |= {kind for kind in ("accepted", "dropped", "scored") if await tab.count(f"#tree .node.{kind}")}
    assert kinds == {"accepted", "dropped", "scored"}
    assert await tab.count("#with .text .now")
    await tab.click("#recent tbody tr:last-child button")
    assert f"with seed {SEEDS[0]}," in await tab.text("#status")


async def test_without_a_drafter_what_repeats_is_looked_up_and_the_page_says_why(
    without_drafter: str, browser: Browser
) -> None:
    tab = await browser.open(without_drafter)
    await tab.until("document.getElementById('models').textContent.startsWith('target')")
    assert "no drafter: no draft service is configured" in await tab.text("#models")
    await asked_for(tab, seed=1, temperature=0)
    await tab.click("#run")
    await tab.until(OVER)
    assert await tab.count("#with .text .prompt_lookup")
    has_looked_up = False
    for _ in range(int(await tab.value("document.getElementById('round').max"))):
        await tab.click("#earlier")
        has_looked_up |= bool(await tab.count("#tree .node.looked-up.scored"))
    assert has_looked_up
    assert await tab.text("#mode") == ("The target decoded without a drafter. Why: no draft service is configured.")
    assert not await tab.count("#lane-scroll rect.draft")
    assert tab.faults == []


async def test_a_race_ends_with_identical_text(tab: Tab) -> None:
    await asked_for(tab, seed=5, max_tokens=60)
    await tab.click("#race")
    await tab.until(OVER)
    assert (await tab.text("#verdict")).startswith("Identical: all 60 tokens are the same.")
    assert await tab.value(TOKENS) == await tab.value(TOKENS.replace("#with", "#alone"))
    assert await tab.count("#alone .text .target") == 60


async def test_a_cut_connection_is_shown_and_the_answer_goes_on(tab: Tab, served: tuple[Relay, str]) -> None:
    relay, _ = served
    await asked_for(tab, seed=6, max_tokens=120)
    await tab.click("#run")
    await tab.until(OVER)
    whole = await tab.value(TOKENS)
    relay.hold_after(6_000)  # far from the end, however few rounds bring the answer
    await tab.value(NOTES_A_CUT)
    await tab.click("#run")
    await tab.until(f"{NUM_TOKENS} > 0 && {NUM_TOKENS} < 120")  # a browser may lose what it has not read before a cut
    relay.cut()
    await tab.until(OVER)
    num_before = await tab.value("window.numTokensAtCut")
    assert relay.num_cuts == 1
    assert 0 < num_before < 120
    assert await tab.text("#status") == "Done: 120 tokens with seed 6, up to the limit, taken up again after 1 cut."
    assert await tab.value(TOKENS) == whole
    first, again = [asked["headers"] for asked in tab.requests if asked["method"] == "POST"][-2:]
    assert (first.get("last-event-id"), bool(again.get("last-event-id"))) == (None, True), "no token came twice"
    assert [fault for fault in tab.faults if "net::ERR" not in fault] == []  # the browser's own word on the cut
    tab.faults.clear()


async def test_on_a_phone_nothing_is_wider_than_the_window(tab: Tab) -> None:
    await tab.size(360, 740)
    await asked_for(tab, seed=7, max_tokens=60)
    await tab.click("#race")
    await tab.until(OVER)
    assert await tab.value("document.documentElement.scrollWidth") <= 360
    small = "Array.from(document.querySelectorAll('#actions button, #controls input[type=number], #controls select'))"
    assert await tab.value(f"{small}.every(each => each.getBoundingClientRect().height >= 36)")


async def test_a_stop_frees_the_page(tab: Tab) -> None:
    await asked_for(tab, seed=8, max_tokens=900)
    await tab.choose("[name=pace]", "4")
    await tab.click("#run")
    await tab.until(f"{NUM_TOKENS} > 0")
    await tab.press("Escape")
    await tab.until(OVER)
    assert (await tab.text("#status")).startswith("Stopped after")


async def test_a_refusal_is_told_in_the_servers_words(tab: Tab) -> None:
    await asked_for(tab, seed=9, max_tokens=5000)
    await tab.click("#run")
    await tab.until("!document.getElementById('error').hidden")
    assert "max_tokens: is 5000; the context of 1024 leaves" in await tab.text("#error")
    assert [fault for fault in tab.faults if "status of 400" not in fault] == []
    tab.faults.clear()


async def test_a_conversation_goes_on(tab: Tab) -> None:
    await tab.click("[name=kind][value=chat]")
    for number in (1, 2):
        await asked_for(tab, seed=number, max_tokens=20)
        await tab.click("#run")
        await tab.until(f"document.querySelectorAll('#conversation li').length === {2 * number}")
    assert (await tab.text("#conversation li")).startswith("You def walk(")
    assert await tab.value("document.getElementById('text').value") == ""


async def test_everything_is_reached_by_keyboard_and_colours_can_be_switched(tab: Tab) -> None:
    reached: set[str] = set()
    for _ in range(25):
        await tab.press("Tab")
        reached.add(await tab.value("document.activeElement.id || document.activeElement.name || ''"))
    wanted = {"theme", "text", "temperature", "seed", "maxTokens", "width", "pace", "speculate", "run", "race"}
    assert wanted | {"round", "tree", "lane-scroll"} <= reached
    colour = "getComputedStyle(document.body).backgroundColor"
    light = await tab.value(colour)
    await tab.click("#theme")
    assert await tab.value(colour) == light
    await tab.click("#theme")
    assert await tab.value(colour) != light
    await tab.click("#theme")
    assert await tab.text("#theme") == "Colours: as the system"


async def test_who_has_a_token_is_let_in(guarded: tuple[str, str], browser: Browser) -> None:
    url, token = guarded
    tab = await browser.open(url)
    await tab.until("!document.getElementById('door').hidden")
    assert "token" in await tab.text("#models")
    for given in ("a guess", token):
        await tab.fill("#token", given)
        await tab.click("#door button")
        shown = "target, 1024" if given == token else "The server does not say"
        await tab.until(f"document.getElementById('models').textContent.startsWith({shown!r})")
    assert await tab.value("document.getElementById('door').hidden")
    await tab.fill("#text", "def walk(")
    await tab.press("Enter", ctrl=True)
    await tab.until(f"{OVER} && document.getElementById('status').textContent.startsWith('Done')")
