"""The Kubernetes objects that kustomizations of the folders under k8s/ make."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
K8S = REPOSITORY / "k8s"

BASE = "base"
"""The folder that the others build on. It only lists whole objects, so it can be read without rendering."""

OVERLAYS = (BASE, *sorted(f"overlays/{path.parent.name}" for path in K8S.glob("overlays/*/kustomization.yaml")))
"""Every folder that is applied with `kubectl apply -k`."""

COMPONENTS = tuple(sorted(path.parent.name for path in K8S.glob("components/*/kustomization.yaml")))
"""Every folder that is added to one of them."""

PRODUCTION = ("tls", "tokens", "isolation", "availability", "no-reflection")
"""What overlays/production has."""
_ON_TOP = ("monitoring-tls", "autoscaling", "gateway-tls")
"""What the guide adds to it."""

Combination = tuple[str, tuple[str, ...]]
"""A folder, and the components that a kustomization of one's own adds, in their order."""

COMBINATIONS: tuple[Combination, ...] = (
    *((overlay, ()) for overlay in OVERLAYS),
    ("overlays/cpu", ("models-pvc",)),
    ("overlays/cpu", ("models-image",)),
    ("overlays/cpu", ("tls",)),
    ("overlays/cpu", ("tokens",)),
    ("overlays/cpu", ("isolation",)),
    ("overlays/cpu", ("availability",)),
    ("overlays/cpu", ("monitoring",)),
    ("overlays/cpu", ("monitoring", "autoscaling")),
    ("overlays/cpu", ("gateway",)),
    ("overlays/cpu", ("gateway", "inference-pool")),
    ("overlays/cpu", ("isolation", "availability", "monitoring", "autoscaling", "gateway", "inference-pool")),
    ("overlays/cpu", (*PRODUCTION, *_ON_TOP)),
    ("overlays/gpu", ("models-image",)),
    ("overlays/gpu", ("dra",)),
    ("overlays/gpu", ("compile-cache",)),
    ("overlays/cpu", ("models-pvc", "compile-cache")),
    ("overlays/gpu", ("models-image", "dra", "monitoring", "autoscaling", "gateway", "inference-pool")),
    ("overlays/a100-t4", (*PRODUCTION, *_ON_TOP)),
    ("overlays/a100-t4", ("models-image", "compile-cache", "dra", "gateway", "inference-pool")),
    ("overlays/mig", (*PRODUCTION, *_ON_TOP)),
    ("overlays/mig", ("models-image", "compile-cache", "gateway", "inference-pool")),
    ("overlays/multi-gpu", (*PRODUCTION, *_ON_TOP)),
    ("overlays/multi-gpu", ("models-image", "compile-cache", "monitoring", "gateway", "inference-pool")),
    ("overlays/multi-host", ("isolation", "monitoring", "gateway", "inference-pool")),
    ("overlays/multi-host", (*PRODUCTION, "monitoring-tls", "gateway-tls")),
    ("overlays/production", _ON_TOP),
    ("overlays/production", ("models-image", "compile-cache", *_ON_TOP)),
    ("overlays/production", ("dra", *_ON_TOP)),
)
"""What is rendered."""

_RENDER_SECONDS_MAX = 60.0
"""Longest that one rendering may take; it reads a few local files."""

_INCLUDES = {"monitoring-tls": ("monitoring",), "gateway-tls": ("gateway",)}
"""The components of components."""


@dataclass(frozen=True)
class Manifests:
    """The objects of a combination. Names are given without their prefix `outrider-`."""

    overlay: str
    components: frozenset[str]
    """All that are in use: added, of the overlay, and of other components."""
    objects: list[dict[str, Any]]

    def named(self, kind: str) -> dict[str, dict[str, Any]]:
        """The objects of one kind by name."""
        return {
            found["metadata"]["name"].removeprefix("outrider-"): found
            for found in self.objects
            if found["kind"] == kind
        }

    def deployments(self) -> set[str]:
        """The names of all deployments, and of all groups of pods that stand in the place of one."""
        return {*self.named("Deployment"), *self.named("LeaderWorkerSet")}

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment's specification; of a group in its place that of the leaders, whom its Service selects."""
        if name in self.named("Deployment"):
            return self.named("Deployment")[name]["spec"]
        group = self.group(name)
        leader = group["leaderWorkerTemplate"]["leaderTemplate"]
        labels = leader["metadata"]["labels"] | labels_in_group(name, 0)
        return {**group, "template": {**leader, "metadata": {"labels": labels}}}

    def group(self, name: str) -> dict[str, Any]:
        """The specification of groups of pods that are one worker each."""
        return self.named("LeaderWorkerSet")[name]["spec"]

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

    def templates(self) -> Iterator[dict[str, Any]]:
        """The pod templates of all workloads, jobs too."""
        for found in self.objects:
            specification = found.get("spec", {})
            for holder in (specification, specification.get("leaderWorkerTemplate", {})):
                yield from (holder[key] for key in ("template", "leaderTemplate", "workerTemplate") if key in holder)

    def secrets(self) -> set[str]:
        """The names of all secrets that pods mount."""
        volumes = [volume for template in self.templates() for volume in template["spec"]["volumes"]]
        return {volume["secret"]["secretName"] for volume in volumes if "secret" in volume}


def labels_in_group(name: str, index: int) -> dict[str, str]:
    """What the controller of LeaderWorkerSets adds to the labels of all pods of one group."""
    return {
        "leaderworkerset.sigs.k8s.io/group-index": str(index),
        "leaderworkerset.sigs.k8s.io/name": f"outrider-{name}",
    }


def kustomization_of(overlay: str) -> dict[str, Any]:
    """What its file says."""
    return yaml.safe_load((K8S / overlay / "kustomization.yaml").read_text())


def built_on(overlay: str) -> list[str]:
    """The overlay itself behind all that it builds on, of which the base is the first."""
    if overlay == BASE:
        return [BASE]
    found = [os.path.normpath(Path(overlay, resource)) for resource in kustomization_of(overlay)["resources"]]
    return [*(lower for each in found if (K8S / each).is_dir() for lower in built_on(each)), overlay]


def components_of(overlay: str) -> list[str]:
    """The components that an overlay has, through the overlays that it builds on."""
    return [
        Path(component).name for each in built_on(overlay) for component in kustomization_of(each).get("components", ())
    ]


def in_use(overlay: str, components: tuple[str, ...] = ()) -> frozenset[str]:
    """All components of a combination."""
    direct = {*components_of(overlay), *components}
    return frozenset(direct.union(*(_INCLUDES.get(each, ()) for each in direct)))


IN_TURN: tuple[Combination, ...] = tuple(
    (overlay, (*components, "in-turn"))
    for overlay, components in COMBINATIONS
    if in_use(overlay, components) & {"models-pvc", "models-image"} and "multi-" not in overlay
)
"""What has no draft workers: the combinations whose verify workers find both models, each on one device."""


@functools.cache
def written() -> Manifests:
    """The base as it is written."""
    files = yaml.safe_load((K8S / BASE / "kustomization.yaml").read_text())["resources"]
    texts = [(K8S / BASE / file).read_text() for file in files]
    return Manifests(BASE, frozenset(), [found for text in texts for found in yaml.safe_load_all(text)])


def kustomized(folder: Path) -> list[dict[str, Any]]:
    """The objects that kubectl makes of a folder with a kustomization."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not on the PATH: only k8s/base is checked, as written")
    result = subprocess.run(
        [kubectl, "kustomize", str(folder)],
        env=os.environ | {"GOGC": "off"},  # it ends before its garbage is worth collecting
        capture_output=True,
        text=True,
        timeout=_RENDER_SECONDS_MAX,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return list(yaml.load_all(result.stdout, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


@functools.cache
def rendered(overlay: str, components: tuple[str, ...] = ()) -> Manifests:
    """What a kustomization of one's own would make, outside of this repository as the guide tells to write it."""
    with tempfile.TemporaryDirectory() as folder:
        k8s = os.path.relpath(K8S, os.path.realpath(folder))
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [f"{k8s}/{overlay}"],
            "components": [f"{k8s}/components/{component}" for component in components],
        }
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        objects = kustomized(Path(folder))
    return Manifests(overlay, in_use(overlay, components), objects)


def having(component: str) -> pytest.MarkDecorator:
    """Runs a test for each combination that has this component, its own or an overlay's."""
    chosen = [combination for combination in COMBINATIONS if component in in_use(*combination)]
    return pytest.mark.parametrize("combination", chosen, ids=id_of)


def id_of(combination: Combination) -> str:
    """How a combination is called in a report."""
    return "+".join((combination[0], *combination[1]))


@pytest.fixture
def repository() -> Path:
    """The repository's root."""
    return REPOSITORY


@pytest.fixture
def base() -> Manifests:
    """The base as it is written."""
    return written()


@pytest.fixture
def rendered_base() -> Manifests:
    """The base as kubectl renders it."""
    return rendered(BASE)


@pytest.fixture
def on_cpu() -> Manifests:
    """The overlay with images for CPU."""
    return rendered("overlays/cpu")


@pytest.fixture
def on_gpus() -> Manifests:
    """The overlay for two kinds of GPU."""
    return rendered("overlays/gpu")


@pytest.fixture
def on_other_gpus() -> Manifests:
    """The overlay that swaps both kinds."""
    return rendered("overlays/a100-t4")


@pytest.fixture
def in_production() -> Manifests:
    """The overlay for production, with what the guide adds to it."""
    return rendered("overlays/production", _ON_TOP)


@pytest.fixture(params=COMBINATIONS, ids=id_of)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    """Each combination in turn. The base alone is read as written, so that it is checked without kubectl too."""
    return written() if request.param == (BASE, ()) else rendered(*request.param)


@pytest.fixture(scope="session")
def largest() -> dict[tuple[str, str], dict[str, Any]]:
    """One object of each kind, by API version and kind: the largest that any combination makes."""
    objects = [found for combination in COMBINATIONS for found in rendered(*combination).objects]
    objects.sort(key=lambda found: len(json.dumps(found)))
    return {(found["apiVersion"], found["kind"]): found for found in objects}
