"""The Dockerfiles build what the manifests run. No container engine is needed: they are read, not built."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Manifests

REPOSITORY = Path(__file__).parents[2]

FOLDERS = {"draft": "draft_service", "verify": "verify_service", "coordinator": "coordinator"}
"""Each service's folder, which is also its Python package."""


def dockerfile(name: str) -> str:
    """The text of a service's Dockerfile."""
    return (REPOSITORY / FOLDERS[name] / "Dockerfile").read_text()


def stages(name: str) -> list[list[tuple[str, str]]]:
    """The build stages as lists of (instruction, arguments); what stands before the first FROM is left out."""
    lines = (line for line in dockerfile(name).splitlines(keepends=True) if not line.startswith("#"))
    instructions = "".join(lines).replace("\\\n", "").splitlines()
    found: list[list[tuple[str, str]]] = []
    for instruction, _, arguments in (line.partition(" ") for line in instructions if line):
        if instruction == "FROM":
            found.append([])
        if found:
            found[-1].append((instruction, arguments))
    return found


def only(name: str, instruction: str) -> str:
    """The arguments of an instruction that occurs once in the final stage."""
    (arguments,) = (arguments for each, arguments in stages(name)[-1] if each == instruction)
    return arguments


@pytest.mark.parametrize("name", FOLDERS)
def test_the_image_starts_its_own_service_as_the_manifests_user(base: Manifests, name: str) -> None:
    user = base.pod(name)["securityContext"]
    assert json.loads(only(name, "ENTRYPOINT")) == ["python", "-m", FOLDERS[name]]
    assert only(name, "USER") == f"{user['runAsUser']}:{user['runAsGroup']}"
    ports = [str(port["containerPort"]) for port in base.container(name)["ports"]]
    assert only(name, "EXPOSE").split() == ports
    assert not {"command", "args"} & base.container(name).keys()


@pytest.mark.parametrize("name", ["draft", "verify"])
def test_a_workers_image_brings_the_compiler_that_kernels_on_a_gpu_need(name: str) -> None:
    """Unless it is built without, as for CPUs."""
    (compiler,) = (given for each, given in stages(name)[-1] if each == "ARG" and given.startswith("COMPILER="))
    assert compiler.partition("=")[2].strip('"').split() == ["gcc", "libc6-dev"]
    assert "apt-get install --yes --no-install-recommends $COMPILER " in only(name, "RUN")


@pytest.mark.parametrize("name", FOLDERS)
def test_the_final_stage_runs_and_does_not_build(name: str) -> None:
    build, final = stages(name)
    assert build[0] == ("FROM", "${PYTHON_IMAGE} AS build")
    assert final[0] == ("FROM", "${PYTHON_IMAGE}")
    assert "ARG PYTHON_IMAGE=python:3.11-slim\n" in dockerfile(name)
    assert only(name, "RUN").startswith("useradd ")
    variables = only(name, "ENV").split()
    assert "PYTHONUNBUFFERED=1" in variables
    assert ("HF_HUB_OFFLINE=1" in variables) is (name != "coordinator")


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "coordinator"])
def test_workers_get_the_native_operators_before_the_package_is_made(name: str) -> None:
    steps = [arguments for _, arguments in stages(name)[0]]
    made = steps.index("python -m outrider.engine.library")
    assert steps.index("outrider outrider") < made < steps.index("pip install --no-cache-dir --no-deps .")
    assert any("g++" in step for step in steps[:made])


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_copied_exists_and_is_not_ignored(name: str) -> None:
    first, *patterns = [
        line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    assert first == "*"
    admitted = {pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")}
    copied = [arguments.split()[:-1] for stage in stages(name) for each, arguments in stage if each == "COPY"]
    sources = {source for arguments in copied for source in arguments if not arguments[0].startswith("--from=")}
    assert {"outrider", FOLDERS[name], "pyproject.toml", "constraints.txt"} <= sources
    for source in sources:
        assert (REPOSITORY / source).exists(), f"{source} is copied into the {name} image but is not there"
        assert source.split("/")[0] in admitted


def test_the_command_that_asks_finds_all_it_imports_beside_the_coordinator() -> None:
    trees = [ast.parse(file.read_text()) for file in (REPOSITORY / "outrider" / "cli").glob("*.py")]
    modules = {node.module for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported = {str(module).partition(".")[0] for module in modules} & set(FOLDERS.values())
    copied = {arguments.split()[0] for each, arguments in stages("coordinator")[0] if each == "COPY"}
    assert {FOLDERS["coordinator"]} < imported <= copied


@pytest.mark.parametrize("name", FOLDERS)
def test_requirements_come_from_the_project(name: str, tmp_path: Path) -> None:
    (step,) = (arguments for _, arguments in stages(name)[0] if "requirements.txt" in arguments)
    listing, installing = step.split("&&")
    assert "--requirement requirements.txt --constraint constraints.txt" in installing
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.defpath])
    subprocess.run(["/bin/sh", "-c", listing], cwd=tmp_path, env={"PATH": path}, check=True, timeout=60)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    expected = list(project["dependencies"])
    if name != "coordinator":
        expected += project["optional-dependencies"]["engine"]
    assert (tmp_path / "requirements.txt").read_text().splitlines() == expected


def test_manifests_run_images_that_are_built(manifests: Manifests) -> None:
    for name in FOLDERS:
        version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
        built = re.findall(rf"docker build -f {FOLDERS[name]}/Dockerfile -t (\S+)", dockerfile(name))
        image = manifests.container(name)["image"]
        assert image in built
        assert image.startswith(f"outrider-{name}:{version}")
