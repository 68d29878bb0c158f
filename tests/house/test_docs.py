"""What the documentation names exists, and its tables say what the code says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache

import pytest
import typer.core
import typer.main
import yaml
from pydantic_settings import BaseSettings

from coordinator.config import CoordinatorConfig
from draft_service.config import DraftConfig
from outrider.cli.__main__ import app
from outrider.client import Speculation, Timings, Usage
from outrider.rpc import status
from outrider.telemetry.setup import TRACE_DETAIL_VARIABLE
from verify_service.config import VerifyConfig

from .layers import GENERATED, LAYERS, PRODUCT
from .pages import PAGES, ROOT, anchors, commands, links, own_commands, rows, spans

README, MAP, PROTOCOL = PAGES["README.md"], PAGES["docs/map.md"], PAGES["docs/protocol.md"]

CONFIGS: dict[str, type[BaseSettings]] = {
    "coordinator": CoordinatorConfig,
    "draft_service": DraftConfig,
    "verify_service": VerifyConfig,
}
"""The settings of each service, by the module that starts it."""

CONTAINERS = {"coordinator": "coordinator", "draft": "draft_service", "verify": "verify_service"}
"""What runs in a container of the manifests."""

PATH_SUFFIXES = (".py", ".md", ".proto", ".yaml", ".toml", ".txt")
"""A span of code that ends so names a file of the repository."""

FILES_OF_EVERY_SERVICE = {"__main__.py", "config.py"}

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

`after`
"""


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def flag_of(field: str) -> str:
    return "--" + field.replace("_", "-")


def variables(config: type[BaseSettings]) -> set[str]:
    """The variables that a service reads."""
    return {f"OUTRIDER_{field.upper()}" for field in config.model_fields} | {TRACE_DETAIL_VARIABLE}


def every_variable() -> set[str]:
    return set().union(*map(variables, CONFIGS.values()))


@cache
def known_flags() -> dict[str, frozenset[str]]:
    """The flags of each command of ours."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return {module: frozenset(map(flag_of, config.model_fields)) | {"--help"} for module, config in CONFIGS.items()} | {
        f"outrider {name}": frozenset(flag for parameter in command.params for flag in parameter.opts) | {"--help"}
        for name, command in group.commands.items()
    }


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
    assert spans(SAMPLE) == ["sorts", "outrider up --port 0", "A", "B", "after"]
    (coordinator, _), tool, up = commands(SAMPLE)
    assert list(own_commands(coordinator)) == [("coordinator", {"--draft", "--listen"})]
    assert tool.words[:3] == ["tool", "-d", '{"a":\n  1}']
    assert tool.document == '{"b": 2}\n'
    assert list(own_commands(up.words)) == [("outrider up", {"--port"})]
    assert rows(SAMPLE, "name") == [["`A`", "1"], ["`B`", ""]]
    assert links(SAMPLE) == ["docs/map.md#the-layer-rule"]
    assert anchors(SAMPLE) == {"a-page-of-sorts"}


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("k8s/")])
def test_every_path_exists(page: str) -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    named = {
        span
        for span in spans(PAGES[page])
        if re.fullmatch(r"[\w./-]+", span) and (span.endswith(PATH_SUFFIXES) or span.partition("/")[0] in folders)
    }
    missing = [path for path in named - FILES_OF_EVERY_SERVICE if not (ROOT / path).exists()]
    for target in links(PAGES[page]):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            missing.append(target)
    assert missing == []


def test_the_map_shows_every_source_file_and_every_layer() -> None:
    shown = set(spans(MAP))
    sources = [
        path.relative_to(ROOT)
        for folder in sorted(PRODUCT)
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "__init__.py" and not path.is_relative_to(ROOT / GENERATED)
    ]
    assert len(sources) > 50
    assert [str(path) for path in sources if str(path) not in shown] == [], "give it a row in docs/map.md"
    assert LAYERS.keys() - {"outrider"} <= shown


def test_every_flag_exists() -> None:
    known = known_flags()
    used = [each for words, _ in commands(README) for each in own_commands(words)]
    assert {command for command, _ in used} >= known.keys()
    assert [(command, flags) for command, flags in used if not flags <= known.get(command, frozenset())] == []
    mentioned = {span.split()[0] for span in spans(README) if span.startswith("--")}
    assert mentioned
    assert mentioned - frozenset().union(*known.values()) == set()


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    named = {words[1] for page in PAGES.values() for words, _ in commands(page) if words[0] == "make"}
    assert named >= {"run", "test"}
    assert named - targets == set()


def test_the_readme_lists_every_setting() -> None:
    listed = {code(variable)[0]: code(flag) for variable, flag, *_ in rows(README, "variable")}
    assert listed.keys() == every_variable()
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


def test_the_readme_lists_every_key_of_the_json_object() -> None:
    listed = {key: set(code(content)) for keys, content in rows(README, "key") for key in code(keys)}
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
