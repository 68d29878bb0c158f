"""What the user sees: in a terminal, in a pipe, and in the closing table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import aclosing

import pytest
from rich.console import Console
from rich.style import Style
from rich.text import Text

from outrider.cli.display import ORIGIN_STYLES, ROLLBACK_MARK, Display, legend
from outrider.cli.generate import conclude, generate
from outrider.cli.request import Request
from outrider.client import Answer, GenerationClient, GenerationOptions, TokenOrigin
from outrider.v1 import generation_pb2 as pb
from tests.client.scripted import ROUNDS, TEXT, TWO, ScriptedCoordinator, finished, serving, started, tokens

REQUEST = Request("import os\n", GenerationOptions())


def terminal(*, no_color: bool = False) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, color_system="truecolor", no_color=no_color, width=100, _environ={}
    )


def pipe() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=100, _environ={})


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


async def displayed(console: Console, coordinator: ScriptedCoordinator | None = None) -> tuple[Answer, str]:
    """The answer of a scripted coordinator and what the console shows of it."""
    async with serving(coordinator or ScriptedCoordinator()) as address:
        answer = await generate(REQUEST, address, Display(console, "import os\n"))
    return answer, written(console)


def style_of(text: Text, part: str) -> Style:
    """The style in which `part` was written, read back from the terminal's escape sequences."""
    start = text.plain.index(part)
    (style,) = {text.get_style_at_offset(Console(), offset) for offset in range(start, start + len(part))}
    return style


async def test_a_pipe_gets_the_generated_text_and_nothing_else() -> None:
    answer, shown = await displayed(pipe())
    assert shown == TEXT + "\n"
    assert answer.completions[0].text == TEXT


async def test_a_terminal_shows_prompt_text_and_rollback_where_they_belong() -> None:
    _, shown = await displayed(terminal())
    assert Text.from_ansi(shown).plain == f"import os\ndef walk(top){ROLLBACK_MARK}:\n!\n"


@pytest.mark.parametrize("no_color", [False, True])
async def test_origins_look_different_even_without_colours(no_color: bool) -> None:
    _, shown = await displayed(terminal(no_color=no_color))
    text = Text.from_ansi(shown)
    styles = {part: style_of(text, part) for part in ("walk", "(", "def ", ":", ROLLBACK_MARK)}
    assert style_of(text, "top)") == styles["walk"]
    assert len(set(styles.values())) == len(styles)
    assert any(style.color is not None for style in styles.values()) is not no_color


async def test_the_legend_shows_each_origin_as_the_text_does() -> None:
    console = terminal()
    console.print(legend())
    line = Text.from_ansi(written(console))
    _, shown = await displayed(terminal())
    text = Text.from_ansi(shown)
    for part, name in (("walk", "accepted draft"), ("(", "bonus"), ("def ", "target alone"), (":", "recovered")):
        assert style_of(line, name) == style_of(text, part)
    assert style_of(line, f"{ROLLBACK_MARK} rollback") == style_of(text, ROLLBACK_MARK)
    assert set(ORIGIN_STYLES) == set(TokenOrigin)


async def test_a_model_cannot_steer_the_terminal() -> None:
    hostile = "\x1b[2J\x07\x9b31m\rok"
    script = [started(), tokens(2, (1, hostile, pb.TOKEN_ORIGIN_TARGET)), finished(1, text="")]
    _, shown = await displayed(terminal(), ScriptedCoordinator(script))
    assert Text.from_ansi(shown).plain == "import os\n␛[2J␇\ufffd31m␍ok\n"
    _, piped = await displayed(pipe(), ScriptedCoordinator(script))
    assert piped == hostile + "\n"


async def test_markup_in_the_text_stays_text() -> None:
    script = [started(), tokens(2, (1, "[bold]:smile: [/x]", pb.TOKEN_ORIGIN_TARGET)), finished(1, text="")]
    _, shown = await displayed(terminal(), ScriptedCoordinator(script))
    assert "[bold]:smile: [/x]" in Text.from_ansi(shown).plain


async def test_the_table_goes_where_it_does_not_harm_the_text() -> None:
    answer, _ = await displayed(pipe())
    out, err = pipe(), pipe()
    conclude(answer, None, out, err)
    assert written(out) == ""
    table = written(err)
    for part in (
        "6 (length)",
        "2.00 tokens per round",
        "25% (2 of 8)",
        "1 of 5 accepted",
        "4 of 9 drafted",
        "12.0",
        "40 ms",
        "degraded: the drafter left",
    ):
        assert part in table
    assert "prediction" not in table, "a share of nothing"
    out, err = terminal(), terminal()
    conclude(answer, None, out, err)
    assert written(err) == ""
    assert "rollback" in written(out)


async def test_the_comparison_has_both_columns_and_their_ratio() -> None:
    answer, _ = await displayed(pipe())
    target_only, _ = await displayed(pipe(), ScriptedCoordinator([*ROUNDS[:-1], finished(total_ms=1000.0)]))
    err = pipe()
    conclude(answer, target_only, pipe(), err)
    (line,) = [line for line in written(err).splitlines() if "tokens/s" in line]
    assert [part.strip() for part in line.split("│")[1:5]] == ["tokens/s", "12.0", "6.0", "2.00 x"]
    assert "identical (6 tokens)" in written(err)


async def displayed_two(console: Console, script: Sequence[object] = TWO) -> tuple[Answer, str]:
    """Two completions, and what the console shows of them."""
    async with serving(ScriptedCoordinator(script)) as address:
        display = Display(console, "import os\n", num_completions=2)
        answer = await generate(REQUEST.but(num_completions=2), address, display)
    return answer, written(console)


async def test_completions_follow_one_another_whichever_ends_first() -> None:
    _, piped = await displayed_two(pipe())
    assert piped == (
        f"==> completion 0, seed {2**64 - 1} <==\nfirst ends\n==> completion 1, seed 0 <==\nsecond ends early!\n"
    )
    _, shown = await displayed_two(terminal())
    lines = Text.from_ansi(shown).plain.splitlines()
    assert [line.strip("─ ") for line in lines] == [
        f"completion 0, seed {2**64 - 1}",
        "import os",
        "first ends",
        "completion 1, seed 0",
        "import os",
        "second ends early!",
    ]


async def test_the_first_completion_is_shown_as_it_grows() -> None:
    console = pipe()
    async with serving(ScriptedCoordinator([*TWO[:4], ...])) as address, GenerationClient(address) as client:
        display = Display(console, num_completions=2)
        async with aclosing(client.generate("x", num_completions=2)) as events:
            for _ in TWO[:4]:
                display.show(await anext(events))
    assert written(console).endswith("<==\nfirst")


async def test_the_table_of_completions_tells_of_all_together() -> None:
    answer, _ = await displayed_two(pipe())
    err = pipe()
    conclude(answer, None, pipe(), err)
    for part in ("4 (2 cached)", "5 (length)", "25% (4 of 16)", "40 ms", "500 ms", "10.0"):
        assert part in written(err)


async def test_the_comparison_names_the_completion_that_differs() -> None:
    answer, _ = await displayed_two(pipe())
    err = pipe()
    conclude(answer, answer, pipe(), err)
    assert "of all 2 completions are identical (5 tokens)" in written(err)
    other, _ = await displayed_two(pipe(), [*TWO[:3], *TWO[4:]])
    err = pipe()
    conclude(answer, other, pipe(), err)
    assert "of completion 1 differ from generated token 2 on" in written(err).replace("\n", " ")


@pytest.mark.parametrize(
    ("last", "where"),
    [(tokens(5, (13, "top", pb.TOKEN_ORIGIN_TARGET), (99, "x", pb.TOKEN_ORIGIN_TARGET)), 5), (None, 4)],
)
async def test_tokens_that_differ_are_not_called_identical(last: pb.GenerateResponse | None, where: int) -> None:
    answer, _ = await displayed(pipe())
    script = [*ROUNDS[:3], *([last] if last is not None else []), finished()]
    target_only, _ = await displayed(pipe(), ScriptedCoordinator(script))
    err = pipe()
    conclude(answer, target_only, pipe(), err)
    assert f"differ from generated token {where} on" in written(err)
