"""The parts of pages that follow from the code. `make docs` writes them anew; a test proves them fresh.

A part stands between `<!-- made by make docs: NAME -->` and `<!-- end of NAME -->`; `PARTS` says how each is made.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from coordinator.config import CoordinatorConfig
from draft_service.config import DraftConfig
from outrider.core.coordinate.drafter_state import diagram
from outrider.core.coordinate.statistics import COUNTERS
from outrider.settings import Settings
from outrider.telemetry import names
from outrider.telemetry.setup import TRACE_DETAIL_VARIABLE
from outrider.telemetry.spans import SPANS
from outrider.telemetry.tracing import TraceDetail
from outrider.vllm.config import PoolConfig
from verify_service.config import VerifyConfig

from .layers import GENERATED, LAYERS, PRODUCT
from .pages import PAGES, ROOT

CONFIGS: dict[str, type[Settings]] = {
    "coordinator": CoordinatorConfig,
    "draft_service": DraftConfig,
    "verify_service": VerifyConfig,
}
"""The settings of each service, by the module that starts it."""

PAIRS = {
    "bundled": "bundled",
    "widened to 4096": "widened-4096",
    "widened to 16384": "wide",
}
"""The results that README quotes: what the target is, and the file in `bench/results`."""

_RIVALS = re.compile(r"(sync|pearl|colocated)_\d+|amusd")
"""Modes that are other systems' rules on Outrider's own engine."""

_PART = re.compile(r"(<!-- made by make docs: (\w+) -->\n).*?(<!-- end of \2 -->)", flags=re.S)


def settings() -> str:
    """A row for each setting; services that mean the same by one share it."""
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for service, config in CONFIGS.items():
        for name, field in config.model_fields.items():
            variable, flag = f"`OUTRIDER_{name.upper()}`", f"`{flag_of(name)}`"
            row = (variable, flag, _default(field), f"{field.description}{_range(field)}")
            rows.setdefault(row, []).append(f"`{service}`")
    found = [[variable, flag, ", ".join(of), *rest] for (variable, flag, *rest), of in rows.items()]
    details = ", ".join(f"`{each.value}`" for each in TraceDetail)
    trace = [
        f"`{TRACE_DETAIL_VARIABLE}`",
        "",
        ", ".join(f"`{service}`" for service in CONFIGS),
        f"`{TraceDetail.REQUEST.value}`",
        f"spans of a traced request; one of {details}",
    ]
    return _table(["variable", "flag", "of", "default", "what it sets"], sorted([*found, trace]))


def pool() -> str:
    """A row for each setting of vLLM's draft pool, which has variables alone."""
    rows = [
        [f"`OUTRIDER_{name.upper()}`", _default(field), f"{field.description}{_range(field)}"]
        for name, field in PoolConfig.model_fields.items()
    ]
    return _table(["setting", "default", "what it sets"], rows)


def rooms() -> str:
    """A row for each package: what the first line of its docstring says."""
    return _table(
        ["room", "what it is"], [[f"`{room}/`", about] for room, about in rooms_of((*sorted(PRODUCT), "bench"))]
    )


def layers() -> str:
    """A row for each layer: what it may import, besides itself and the standard library."""
    return _table(
        ["layer", "may import of ours", "and of others", "must do without"],
        [
            [
                f"`{name}`",
                _names(layer.removeprefix("outrider.") for layer in rule.layers - {"outrider"}),
                _names(rule.packages),
                _names(rule.forbidden),
            ]
            for name, rule in LAYERS.items()
        ],
    )


def results() -> str:
    """A row for each pair and temperature: the target alone, Outrider as three services and in one process, and the
    best of other systems' rules."""
    return _table(
        [
            "target",
            "text",
            "target alone",
            "three services",
            "times faster (95 % interval)",
            "one process (`--in-turn`)",
            "times faster",
            "best rule of others",
        ],
        [_result(pair, at) for pair, name in PAIRS.items() for at in _measured(name)],
    )


def drafter() -> str:
    """The states of a session's drafter, as a diagram."""
    return f"\n```mermaid\n{diagram()}```\n\n"


def traced() -> str:
    """A row for each attribute of each span, and of each event."""
    about = {counter.attribute: counter.about for counter in COUNTERS} | _docstrings_of_names()
    rows: list[list[str]] = []
    for kind in SPANS:
        told = f"`{kind.name}`, {kind.service}"
        for attribute, when in kind.attributes.items():
            rows.append([told, f"`{attribute}`", f"if {when}" if when else "", about.get(attribute, "")])
        for event, attributes in kind.events.items():
            rows += [[f"event `{event}` of it", f"`{each}`", "", about.get(each, "")] for each in attributes]
    return _table(["span", "attribute", "when", "what it says"], rows)


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "pool": pool,
    "rooms": rooms,
    "layers": layers,
    "results": results,
    "drafter": drafter,
    "traced": traced,
}
"""How each part is made."""


def renewed(page: str) -> str:
    """The page with its parts as the code has them now."""
    return _PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}{part[3]}", page)


def parts_of(page: str) -> list[str]:
    """Names of the parts on a page."""
    return [part[2] for part in _PART.finditer(page)]


def flag_of(field: str) -> str:
    """The flag of a setting."""
    return "--" + field.replace("_", "-")


def rooms_of(folders: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each package below `folders` with the first line of its docstring, empty if it has none."""
    for folder in folders:
        for init in sorted((ROOT / folder).rglob("__init__.py")):
            room = init.parent.relative_to(ROOT)
            if room != Path(GENERATED):
                about = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
                yield room.as_posix(), about.partition("\n")[0]


def _docstrings_of_names() -> dict[str, str]:
    """What stands below each constant of `outrider/telemetry/names.py` that has a docstring, by its value."""
    body = ast.parse(Path(names.__file__).read_text(encoding="utf-8")).body
    found: dict[str, str] = {}
    for each, below in itertools.pairwise(body):
        match each, below:
            case ast.AnnAssign(value=ast.Constant(str(value))), ast.Expr(value=ast.Constant(str(text))):
                found[value] = " ".join(text.split())
            case _:
                pass
    return found


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be set"
    if field.default_factory is not None:
        return "by the machine"
    return f"`{field.default}`" if str(field.default) else "empty"


def _range(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "; one of " + ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    low, high = (
        next((getattr(each, name) for each in field.metadata if hasattr(each, name)), None) for name in ("ge", "le")
    )
    if high is not None:
        return f"; {low} to {high}"
    return f"; at least {low}" if low is not None else ""


def _measured(name: str) -> list[dict[str, Any]]:
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))["results"]


def _result(pair: str, at: dict[str, Any]) -> list[str]:
    ms = {mode: measured["ms_per_token"] for mode, measured in at["modes"].items()}
    rival = min(filter(_RIVALS.fullmatch, ms), key=ms.__getitem__)
    return [
        pair,
        "greedy" if at["temperature"] == 0 else f"temperature {at['temperature']:g}",
        f"{ms['target']:.2f} ms",
        *(
            cell
            for mode in ("outrider", "in_turn")
            for cell in (f"{ms[mode]:.2f} ms", _times_faster(at["modes"][mode]))
        ),
        f"{ms[rival]:.2f} ms (`{rival}`)",
    ]


def _times_faster(mode: dict[str, Any]) -> str:
    low, high = mode["speed_up"]["ratio_of_sums_95"]
    return f"{mode['speed_up']['ratio_of_sums']:.2f} ({low:.2f} to {high:.2f})"


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def main() -> None:
    """Writes every page that is not fresh."""
    for page, text in PAGES.items():
        if (fresh := renewed(text)) != text:
            (ROOT / page).write_text(fresh, encoding="utf-8")
            print(f"{page} is written anew", file=sys.stderr)


if __name__ == "__main__":
    main()
