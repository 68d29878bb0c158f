"""The Kubernetes objects that each kustomization under k8s/ makes."""

from __future__ import annotations

import functools
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]

KUSTOMIZATIONS = sorted(path.parent.relative_to(REPOSITORY) for path in REPOSITORY.glob("k8s/**/kustomization.yaml"))
"""Every folder that can be applied with `kubectl apply -k`."""

BASE = Path("k8s/base")
"""The folder that the others build on. It only lists whole objects, so it can be read without rendering."""

CPU = Path("k8s/overlays/cpu")
"""The folder for nodes without GPUs."""

_RENDER_SECONDS_MAX = 60.0
"""Longest that one rendering may take; it reads a few local files."""


@dataclass(frozen=True)
class Manifests:
    """The objects of one folder. Names are given without their prefix `outrider-`."""

    folder: Path
    objects: list[dict[str, Any]]

    def named(self, kind: str) -> dict[str, dict[str, Any]]:
        """The objects of one kind by name."""
        return {
            found["metadata"]["name"].removeprefix("outrider-"): found
            for found in self.objects
            if found["kind"] == kind
        }

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment's specification."""
        return self.named("Deployment")[name]["spec"]

    def pod(self, name: str) -> dict[str, Any]:
        """The specification of a deployment's pods."""
        return self.deployment(name)["template"]["spec"]

    def container(self, name: str) -> dict[str, Any]:
        """The only container of a deployment's pods."""
        (only,) = self.pod(name)["containers"]
        return only

    def environment(self, name: str) -> dict[str, str]:
        """The container's variables; empty where the cluster fills in the value."""
        return {variable["name"]: variable.get("value", "") for variable in self.container(name)["env"]}


@functools.cache
def _written() -> Manifests:
    files = yaml.safe_load((REPOSITORY / BASE / "kustomization.yaml").read_text())["resources"]
    texts = [(REPOSITORY / BASE / file).read_text() for file in files]
    return Manifests(BASE, [found for text in texts for found in yaml.safe_load_all(text)])


@functools.cache
def _rendered(folder: Path) -> Manifests:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip(f"kubectl is not on the PATH: {folder} is not rendered, only k8s/base is checked, as written")
    result = subprocess.run(
        [kubectl, "kustomize", str(REPOSITORY / folder)],
        capture_output=True,
        text=True,
        timeout=_RENDER_SECONDS_MAX,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return Manifests(folder, list(yaml.safe_load_all(result.stdout)))


@pytest.fixture
def repository() -> Path:
    """The repository's root."""
    return REPOSITORY


@pytest.fixture
def base() -> Manifests:
    """The base as it is written."""
    return _written()


@pytest.fixture
def rendered_base() -> Manifests:
    """The base as kubectl renders it."""
    return _rendered(BASE)


@pytest.fixture
def on_cpu() -> Manifests:
    """The overlay for nodes without GPUs."""
    return _rendered(CPU)


@pytest.fixture(params=[folder for folder in KUSTOMIZATIONS if folder not in (BASE, CPU)], ids=str)
def on_other_gpus(request: pytest.FixtureRequest) -> Manifests:
    """Each overlay that swaps the base's GPUs."""
    return _rendered(request.param)


@pytest.fixture(params=KUSTOMIZATIONS, ids=str)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    """Each folder in turn. The base is read as written, so that it is checked without kubectl too."""
    return _written() if request.param == BASE else _rendered(request.param)
