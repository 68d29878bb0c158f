"""What the documentation names exists, and its tables say what the code says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from itertools import chain

import pytest
import typer.core
import typer.main
import yaml
from pydantic_settings import BaseSettings

from outrider.cli.__main__ import app
from outrider.client import Speculation, Timings, Usage
from outrider.rpc import status
from outrider.telemetry.setup import TRACE_DETAIL_VARIABLE
from outrider.vllm.config import PoolConfig

from .generated import CONFIGS, PARTS, flag_of, parts_of, renewed, rooms_of
from .layers import LAYERS, PRODUCT
from .pages import CURRENT, PAGES, ROOT, anchors, commands, definitions, links, own_commands, rows, spans

README, MAP, PROTOCOL = PAGES["README.md"], PAGES["docs/map.md"], PAGES["docs/protocol.md"]
CALLING, SETTINGS, GLOSSARY = PAGES["docs/calling.md"], PAGES["docs/settings.md"], PAGES["docs/glossary.md"]

FOR_USERS = ("README.md", "docs/calling.md", "docs/models.md", "docs/settings.md")
"""Pages whose flags are those of Outrider's own commands alone."""

README_LINES_MAX = 180
"""A first page is read in a few minutes, or not at all."""

CONTAINERS = {"coordinator": "coordinator", "draft": "draft_service", "verify": "verify_service"}
"""What runs in a container of the manifests."""

PATH_SUFFIXES = (".py", ".md", ".proto", ".yaml", ".toml", ".txt")
"""A span of code that ends so names a file of the repository."""

FILES_OF_MANY_FOLDERS = {"__init__.py", "__main__.py", "config.py"}

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

SAMPLE = """
# A page, of `sorts`
See [there](docs/map.md#the-layer-rule) and [elsewhere](https://example.com). Run `outrider up --port 0`.
```sh
python -m coordinator --draft='' \\
  --listen 127.0.0.1:0 | cat   # in one line
tool -d '{"a":
  1}' <<'END'
{"b": 2}
END
```
| name | value |
|---|---|
| `A` | 1 |
| `B` | |

`after` is `Before.it` in `folder/file.py`.
"""


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def variables(config: type[BaseSettings]) -> set[str]:
    """The variables that a service reads."""
    return {f"OUTRIDER_{field.upper()}" for field in config.model_fields} | {TRACE_DETAIL_VARIABLE}


def service_variables() -> set[str]:
    return set().union(*map(variables, CONFIGS.values()))


def every_variable() -> set[str]:
    return service_variables() | variables(PoolConfig)


@cache
def known_flags() -> dict[str, frozenset[str]]:
    """The flags of each command of ours, with those of its own commands."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return {module: frozenset(map(flag_of, config.model_fields)) | {"--help"} for module, config in CONFIGS.items()} | {
        f"outrider {name}": frozenset(
            flag
            for each in (command, *getattr(command, "commands", {}).values())
            for parameter in each.params
            for flag in parameter.opts
        )
        | {"--help"}
        for name, command in group.commands.items()
    }


@cache
def defined_in(file: str) -> frozenset[str]:
    """Names of a file's classes, functions, methods and constants; methods behind their class."""
    found: set[str] = set()
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        match node:
            case ast.ClassDef(name=owner, body=body):
                found |= {owner} | {f"{owner}.{each.name}" for each in body if isinstance(each, FUNCTIONS)}
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
            case _:
                pass
    return frozenset(found)


@cache
def words_of_the_code() -> str:
    """All words of the product and its schema in small letters, names taken apart, a space between two."""
    files = [
        *(path for folder in sorted(PRODUCT) for path in (ROOT / folder).rglob("*.py")),
        *(ROOT / "protos").rglob("*.proto"),
    ]
    text = " ".join(path.read_text(encoding="utf-8") for path in files)
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    return f" {' '.join(re.findall(r'[a-z0-9]+', apart.lower()))} "


def settings_in(node: object) -> Iterator[tuple[str, str]]:
    """Container and variable, wherever a manifest sets one of ours."""
    if isinstance(node, dict):
        for entry in node.get("env") or ():
            if entry["name"].startswith("OUTRIDER_"):
                yield node["name"], entry["name"]
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from settings_in(each)


def test_a_page_is_read_right() -> None:
    assert spans(SAMPLE) == ["sorts", "outrider up --port 0", "A", "B", "after", "Before.it", "folder/file.py"]
    (coordinator, _), tool, up = commands(SAMPLE)
    assert list(own_commands(coordinator)) == [("coordinator", {"--draft", "--listen"})]
    assert tool.words[:3] == ["tool", "-d", '{"a":\n  1}']
    assert tool.document == '{"b": 2}\n'
    assert list(own_commands(up.words)) == [("outrider up", {"--port"})]
    assert rows(SAMPLE, "name") == [["`A`", "1"], ["`B`", ""]]
    assert links(SAMPLE) == ["docs/map.md#the-layer-rule"]
    assert list(definitions(SAMPLE)) == [("Before.it", "folder/file.py")]
    assert anchors(SAMPLE) == {"a-page-of-sorts"}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    missing: list[str] = []
    for target in links(PAGES[page]):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            missing.append(target)
    assert missing == []


MADE = "build"
"""Folder of what commands make: a page may name what is not there yet."""


@pytest.mark.parametrize("page", [page for page in CURRENT if not page.startswith(("k8s/", "models/"))])
def test_every_path_exists(page: str) -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != MADE}
    named = {
        span
        for span in spans(PAGES[page])
        if re.fullmatch(r"[\w./-]+", span) and (span.endswith(PATH_SUFFIXES) or span.partition("/")[0] in folders)
    }
    named -= FILES_OF_MANY_FOLDERS
    beside = (ROOT / page).parent
    assert [path for path in named if not (ROOT / path).exists() and not (beside / path).exists()] == []


@pytest.mark.parametrize("page", CURRENT)
def test_what_is_said_to_be_in_a_file_is_defined_there(page: str) -> None:
    assert [(name, file) for name, file in definitions(PAGES[page]) if name not in defined_in(file)] == []


@pytest.mark.parametrize("page", PAGES)
def test_what_follows_from_the_code_is_fresh(page: str) -> None:
    assert PAGES[page] == renewed(PAGES[page]), "run `make docs`"
    assert PAGES[page].count("<!-- made by make docs") == len(parts_of(PAGES[page])), "a part has no end"


def test_a_stale_part_is_written_anew() -> None:
    stale = "# A page\n<!-- made by make docs: layers -->\nold\n<!-- end of layers -->\nText."
    fresh = renewed(stale)
    assert parts_of(fresh) == ["layers"]
    assert "old" not in fresh
    assert "| `outrider.core` |" in fresh
    assert renewed(fresh) == fresh


def test_every_part_stands_on_a_page() -> None:
    assert sorted(chain.from_iterable(map(parts_of, PAGES.values()))) == sorted(PARTS)


def test_the_first_page_is_short() -> None:
    assert len(README.splitlines()) <= README_LINES_MAX


def test_every_room_says_what_it_is() -> None:
    rooms = dict(rooms_of(sorted(PRODUCT)))
    assert len(rooms) > 20
    assert [room for room, about in rooms.items() if not about.endswith(".")] == []
    assert {code(room)[0].removesuffix("/"): about for room, about in rows(MAP, "room")}.items() >= rooms.items()


def test_the_map_shows_every_layer() -> None:
    assert {code(layer)[0] for layer, *_ in rows(MAP, "layer")} == LAYERS.keys()


def test_the_glossary_explains_words_that_the_code_uses() -> None:
    words = [word for word, *_ in rows(GLOSSARY, "ours")]
    assert len(words) > 30
    assert words == sorted(words, key=str.lower)
    assert [
        word for word in words if not re.search(rf" {word.lower().replace('-', ' ')}s? ", words_of_the_code())
    ] == []


def test_every_flag_exists() -> None:
    known = known_flags()
    pages = [PAGES[page] for page in CURRENT if page == "README.md" or page.startswith("docs/")]
    used = [each for page in pages for words, _ in commands(page) for each in own_commands(words)]
    ours = {command for command, _ in used if command.startswith("outrider ") or command in known}
    assert ours == known.keys()
    assert [(command, flags) for command, flags in used if command in known and not flags <= known[command]] == []
    mentioned = {span.split()[0] for page in FOR_USERS for span in spans(PAGES[page]) if span.startswith("--")}
    assert mentioned
    assert mentioned - frozenset().union(*known.values()) == set()


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    named = {words[1] for page in PAGES.values() for words, _ in commands(page) if words[0] == "make"}
    assert named >= {"run", "test"}
    assert named - targets == set()


def test_the_settings_page_lists_every_setting() -> None:
    listed = {code(variable)[0]: code(flag) for variable, flag, *_ in rows(SETTINGS, "variable")}
    assert listed.keys() == service_variables()
    assert listed.pop(TRACE_DETAIL_VARIABLE) == []
    assert listed == {name: [flag_of(name.removeprefix("OUTRIDER_").lower())] for name in listed}


@pytest.mark.parametrize("page", PAGES)
def test_every_variable_is_a_setting(page: str) -> None:
    assert set(re.findall(r"OUTRIDER_[A-Z]+(?:_[A-Z]+)*", PAGES[page])) - every_variable() == set()


def test_every_variable_of_a_manifest_is_a_setting_of_its_service() -> None:
    found = [
        setting
        for manifest in sorted((ROOT / "k8s").rglob("*.yaml"))
        for document in yaml.safe_load_all(manifest.read_text(encoding="utf-8"))
        for setting in settings_in(document)
    ]
    assert {container for container, _ in found} == CONTAINERS.keys()
    assert [each for each in found if each[1] not in variables(CONFIGS[CONTAINERS[each[0]]])] == []


def test_the_calling_page_lists_every_key_of_the_json_object() -> None:
    listed = {key: set(code(content)) for keys, content in rows(CALLING, "key") for key in code(keys)}
    assert listed["speculation"] == {field.name for field in fields(Speculation)} | {"acceptance_rate"}
    assert listed["timings"] == {field.name for field in fields(Timings)}
    assert listed["usage"] == {field.name for field in fields(Usage)}


def test_every_bound_is_the_one_in_the_code() -> None:
    bounds = rows(PROTOCOL, "constant")
    assert len(bounds) > 20
    for name, value, file, _ in bounds:
        ((name,), (value,), (file,)) = map(code, (name, value, file))
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assigned = [
            ast.unparse(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
        ]
        assert assigned == [ast.unparse(ast.parse(value, mode="eval"))], f"{name} in {file}"


def test_every_error_has_its_row() -> None:
    told = {
        code(error)[0]: (*code(name), *code(reason), retry == "yes")
        for error, name, reason, retry in rows(PROTOCOL, "error")
    }
    table = {error.__name__: (row.code.name, row.reason, row.retry) for error, row in status._TABLE.items()}
    assert told == table
