"""The rules of the house, checked on the syntax tree of each source file. See the layers in `docs/map.md`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

FILE_LINES_MAX = 400
"""A longer file holds more than one idea."""

PRODUCT_LINES_MAX = 350
"""The same for a file of the product."""

PRODUCT_LINES_MEDIAN_MAX = 110
"""Half of them are no longer than this."""

PARAMETERS_MAX = 10
"""A function with more of them takes one value that holds them together."""

VAGUE_NAMES = frozenset({"utils", "util", "helpers", "helper", "common", "misc"})
"""Names of files that say nothing about what is in them."""

PRODUCT = frozenset({"outrider", "draft_service", "verify_service", "coordinator"})
"""Top-level folders that are installed and run."""

GENERATED = PurePosixPath("outrider/v1")
"""Made by protoc; no rule applies."""


class Layer(NamedTuple):
    """What the modules of one package may import besides themselves and the standard library."""

    layers: frozenset[str] = frozenset()
    packages: frozenset[str] = frozenset()
    """Top-level names of installed packages."""
    forbidden: frozenset[str] = frozenset()
    """Modules of the standard library that it must do without."""


def _layer(layers: str = "", packages: str = "", forbidden: str = "", *, services: str = "") -> Layer:
    """`layers` are those of `outrider` that may be imported, `services` those beside it."""
    return Layer(
        frozenset({"outrider", *(f"outrider.{name}" for name in layers.split()), *services.split()}),
        frozenset(packages.split()),
        frozenset(forbidden.split()),
    )


_WORKER_SETTINGS = "worker.config worker.extras"
_GRPC = "grpc grpc_health grpc_reflection grpc_status google"
_ENGINE = "torch transformers tokenizers safetensors huggingface_hub"
_SERVICE = "pydantic pydantic_settings structlog opentelemetry"
_CLOCKS_CHANCE_AND_IO = "asyncio datetime io logging os random secrets selectors socket subprocess threading time uuid"

_ENGINE_FLOORS = (
    ("staging",),
    ("transfer", "library", "load.mask", "sampling_tables"),
    ("native", "load.probe"),
    ("kv_cache",),
    ("jobs",),
    ("batch",),
    ("gpu",),
    ("attention", "quantized"),
    ("compile", "sample", "parallel"),
    ("model",),
    ("",),
    ("load", "device_thread"),
)
"""The rooms of `outrider.engine`, and the files beside them, lowest first: each imports from lower floors alone. ""
is `engine.py`. A model's layers are probed further down than where models are loaded and checked."""


def _engine() -> dict[str, Layer]:
    found: dict[str, Layer] = {}
    below: list[str] = ["core", "machine"]
    for floor in _ENGINE_FLOORS:
        names = ["engine" + (f".{name}" if name else "") for name in floor]
        packages = f"{_ENGINE} triton" if floor == ("gpu",) else _ENGINE
        found |= {f"outrider.{name}": _layer(" ".join(below), packages, forbidden="asyncio") for name in names}
        below += names
    gpu = found["outrider.engine.gpu"]
    return found | {"outrider.engine.gpu": gpu._replace(packages=gpu.packages | {"triton"})}


_GRAMMAR = "llguidance"
_ALL_ENGINE = " ".join(name.removeprefix("outrider.") for name in _engine())


def _room(lower: str = "") -> Layer:
    """A room of the core: what it may use of the rooms below it."""
    return _layer(" ".join(f"core.{name}" for name in lower.split()), forbidden=_CLOCKS_CHANCE_AND_IO)


LAYERS = {
    "outrider": _layer(),
    "outrider.core": _layer(),
    "outrider.core.protocol": _room(),
    "outrider.core.estimate": _room("protocol"),
    "outrider.core.propose": _room("protocol estimate"),
    "outrider.core.verify": _room("protocol estimate propose"),
    "outrider.core.draft": _room("protocol estimate propose"),
    "outrider.core.schedule": _room("protocol estimate propose verify draft"),
    "outrider.core.coordinate": _room("protocol estimate propose"),
    **_engine(),
    "outrider.grammar": _layer("core", f"{_GRAMMAR} structlog"),
    "outrider.lookup": _layer("core machine", forbidden="asyncio"),
    "outrider.machine": _layer(),
    "outrider.output": _layer(),
    "outrider.settings": _layer("core output", packages="pydantic pydantic_settings"),
    "outrider.token_file": _layer("core", packages="pydantic"),
    "outrider.worker.extras": _layer(),
    "outrider.worker.config": _layer("core machine settings worker.extras", "pydantic"),
    "outrider.telemetry": _layer("core", "opentelemetry prometheus_client structlog"),
    "outrider.plan": _layer("core"),
    "outrider.doctor": _layer("core machine", packages="packaging"),
    "outrider.http": _layer("core rpc telemetry", "fastapi structlog uvicorn"),
    "outrider.rpc": _layer("core machine v1", f"{_GRPC} structlog uvloop"),
    "outrider.worker": _layer(
        f"core {_ALL_ENGINE} grammar http lookup machine rpc settings telemetry {_WORKER_SETTINGS} v1",
        f"{_ENGINE} {_GRPC} {_SERVICE}",
    ),
    "outrider.client": _layer("core rpc v1", _GRPC),
    **{
        f"{service}.config": _layer(f"core settings {_WORKER_SETTINGS}", "pydantic")
        for service in ("draft_service", "verify_service")
    },
    "coordinator.chat": _layer("core", "jinja2", forbidden="asyncio io os selectors socket subprocess threading"),
    "coordinator.resolution": _layer("core"),
    "coordinator.config": _layer("core settings", "pydantic", services="coordinator.chat coordinator.resolution"),
    "outrider.cli": _layer(
        "core doctor machine output plan rpc settings telemetry token_file v1 client",
        f"{_GRPC} structlog typer rich bench recipes cryptography",
        services="coordinator.config draft_service.config verify_service.config",
    ),
    **{
        service: _layer(
            f"core {_ALL_ENGINE} grammar http lookup machine rpc settings telemetry worker {_WORKER_SETTINGS} v1",
            f"{_ENGINE} {_GRPC} {_SERVICE}",
            services=services,
        )
        for service, services in (
            ("draft_service", "draft_service.config"),
            ("verify_service", "verify_service.config draft_service draft_service.config"),
        )
    },
    "coordinator": _layer(
        "core machine rpc settings telemetry token_file v1",
        f"{_GRPC} {_SERVICE} tokenizers",
        services="coordinator.chat coordinator.config coordinator.resolution",
    ),
    "coordinator.openai": _layer(
        "core http rpc telemetry",
        "fastapi grpc pydantic pydantic_core starlette",
        services="coordinator coordinator.chat",
    ),
    "outrider.vllm": _layer(
        "core rpc settings telemetry",
        "pydantic structlog transformers",
        services="coordinator coordinator.config coordinator.resolution",
    ),
    "coordinator.page": _layer(packages="fastapi"),
    "coordinator.__main__": _layer(
        "http machine rpc telemetry v1",
        services="coordinator coordinator.config coordinator.openai coordinator.page",
    ),
}
"""Imports go down only, and siblings never import one another, neither packages nor rooms of the core, but that the
verify service may have a drafter of its own. Who may import the core may import any room. Torch stays away from
everything but the workers. The settings of the services lie below the command line, which checks by them what it is
told."""

_CORE = PurePosixPath("outrider/core")

_HALLS = frozenset({"outrider", "outrider.core"})
"""Packages that hold other layers, and no module of their own."""

_MESSAGE_PACKAGES = frozenset({"outrider.rpc", "outrider.client", "outrider.cli"})
_MESSAGE_FILES = frozenset({"servicer.py"})
"""Where protobuf messages may be seen: at the wire. Stubs and registrars (`_pb2_grpc`) hold none."""

_TELEMETRY_INSIDES = ("opentelemetry.sdk", "opentelemetry.exporter")
"""Who makes spans needs OpenTelemetry's interface alone; what becomes of them is decided in one place."""

_ENVIRONMENT_FILES = frozenset({"__main__.py", "config.py"})

_UNSAFE_MODULES = frozenset({"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"})

_FORBIDDEN_NAMES = {
    "torch.load": "unpickles; load safetensors",
    "time.sleep": "waits without a reason; wait for the event itself",
    "asyncio.sleep": "waits without a reason; wait for the event itself",
}

_ENVIRONMENT_NAMES = frozenset({"os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv", "os.unsetenv"})


class Violation(NamedTuple):
    """One breach of a rule."""

    path: PurePosixPath
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


class _Import(NamedTuple):
    line: int
    module: str
    """The module, or the name in it, by its full dotted name."""


def check(path: PurePosixPath, source: str) -> list[Violation]:
    """All breaches in the file that stands at `path`, relative to the repository's root, and reads `source`."""
    if path.is_relative_to(GENERATED):
        return []
    found = list(_check_file(path, source))
    if path.parts[0] in PRODUCT:
        tree = ast.parse(source)
        imports = list(_imports(path, tree))
        found += _check_imports(path, imports)
        found += _check_names(path, tree)
    if path.parts[0] != "tests":
        found += _check_parameters(path, ast.parse(source))
    return found


def _check_file(path: PurePosixPath, source: str) -> Iterator[Violation]:
    num_lines = len(source.splitlines())
    most = PRODUCT_LINES_MAX if path.parts[0] in PRODUCT else FILE_LINES_MAX
    if num_lines > most:
        yield Violation(path, num_lines, f"has {num_lines} lines; at most {most} are allowed")
    if path.stem in VAGUE_NAMES or path.parent.name in VAGUE_NAMES:
        yield Violation(path, 1, "has a name that says nothing about what is in it")


def _is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(decorator) == "triton.jit" for decorator in node.decorator_list)


def _check_parameters(path: PurePosixPath, tree: ast.Module) -> Iterator[Violation]:
    """Not of a kernel: a launch hands it every pointer and stride by itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _is_kernel(node):
            given = node.args
            names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            num_parameters = len([name for name in names if name not in {"self", "cls"}])
            if num_parameters > PARAMETERS_MAX:
                yield Violation(
                    path,
                    node.lineno,
                    f"{node.name} has {num_parameters} parameters; at most {PARAMETERS_MAX} are allowed",
                )


def _check_imports(path: PurePosixPath, imports: list[_Import]) -> Iterator[Violation]:
    own = _layer_of(".".join(path.with_suffix("").parts))
    if own is None or (own in _HALLS and path.name != "__init__.py"):
        yield Violation(path, 1, "belongs to no layer; give its package a row in LAYERS")
        return
    rules = LAYERS[own]
    for line, module in imports:
        top = module.split(".")[0]
        target = _layer_of(module)
        if top in PRODUCT:
            if target != own and not _is_allowed(target, rules.layers):
                yield Violation(path, line, f"{own} must not import {module}")
        elif top in sys.stdlib_module_names:
            if top in rules.forbidden:
                yield Violation(path, line, f"{own} must do without {top}")
        elif top not in rules.packages:
            yield Violation(path, line, f"{own} must not import {top}")
        if module.startswith(_TELEMETRY_INSIDES) and own != "outrider.telemetry":
            yield Violation(path, line, f"telemetry is set up in outrider.telemetry; {own} must not import {module}")
        if top in _UNSAFE_MODULES:
            yield Violation(path, line, f"{top} runs what it reads")
        at_the_wire = own in _MESSAGE_PACKAGES or path.name in _MESSAGE_FILES
        if not at_the_wire and any(part.endswith("_pb2") for part in module.split(".")):
            yield Violation(path, line, f"protobuf messages stop at the wire; {path.name} must not import {module}")


def _is_allowed(target: str | None, layers: frozenset[str]) -> bool:
    return target in layers or (
        target is not None and target.startswith("outrider.core.") and "outrider.core" in layers
    )


def _check_names(path: PurePosixPath, tree: ast.Module) -> Iterator[Violation]:
    full_name_of = {
        alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            name = _dotted(node, full_name_of)
            if name in _FORBIDDEN_NAMES:
                yield Violation(path, node.lineno, f"{name} {_FORBIDDEN_NAMES[name]}")
            if name in _ENVIRONMENT_NAMES and path.name not in _ENVIRONMENT_FILES:
                yield Violation(path, node.lineno, "the environment is read in __main__.py and config.py alone")
        elif isinstance(node, ast.Assert) and not _narrows(node.test):
            yield Violation(path, node.lineno, "an assert tells a type and checks no value: raise an error instead")
        elif isinstance(node, ast.Assert) and path.is_relative_to(_CORE) and _reads_self(node.test):
            yield Violation(path, node.lineno, "an assert tells what state a session is in: give the state a type")
        elif isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield Violation(path, node.value.lineno, "code from a model folder is never run")
        elif isinstance(node, ast.Constant) and node.value == "trust_remote_code":
            yield Violation(path, node.lineno, "code from a model folder is never run")


def _reads_self(test: ast.expr) -> bool:
    return any(
        isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
        for node in ast.walk(test)
    )


def _narrows(test: ast.expr) -> bool:
    """Whether an assertion says no more than that a value is there, or of which class it is."""
    match test:
        case ast.Compare(ops=[ast.IsNot()], comparators=[ast.Constant(value=None)]):
            return True
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _narrows(operand)
        case _:
            return isinstance(test, ast.Call) and _called(test) == "isinstance"


def _imports(path: PurePosixPath, tree: ast.Module) -> Iterator[_Import]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (_Import(node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                package = path.parts[: len(path.parts) - level] if level else ()
                base = ".".join((*package, *([module] if module else ())))
                yield from (_Import(node.lineno, f"{base}.{alias.name}") for alias in names)
            case ast.Call(args=[ast.Constant(value=str(module)), *_]) if _called(node) in {
                "import_module",
                "__import__",
            }:
                yield _Import(node.lineno, module)
            case _:
                pass


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _dotted(node: ast.expr, full_name_of: dict[str, str]) -> str:
    match node:
        case ast.Name(id=name):
            return full_name_of.get(name, name)
        case ast.Attribute(value=value, attr=attr):
            return f"{_dotted(value, full_name_of)}.{attr}"
        case _:
            return ""


def _layer_of(module: str) -> str | None:
    """The layer that a dotted name belongs to: the longest row of LAYERS that it starts with."""
    parts = module.split(".")
    if parts[:2] == ["outrider", "v1"]:
        return "outrider.v1"
    for length in (4, 3, 2, 1):
        if ".".join(parts[:length]) in LAYERS:
            return ".".join(parts[:length])
    return None
