"""Targets over the cards of one pod, and of several."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from .conftest import rendered
from .test_k8s_policy import FOLDERS, GPU


def test_a_target_over_the_cards_of_one_pod() -> None:
    manifests = rendered("overlays/multi-gpu")
    num_ranks = int(manifests.environment("verify")["OUTRIDER_TENSOR_PARALLEL"])
    assert manifests.container("verify")["resources"]["limits"][GPU] == num_ranks > 1
    assert "OUTRIDER_TENSOR_PARALLEL" not in manifests.environment("draft")
    volumes = {volume["name"]: volume for volume in manifests.pod("verify")["volumes"]}
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"


def test_a_target_over_the_cards_of_several_pods() -> None:
    manifests = rendered("overlays/multi-host")
    group = manifests.group("verify")["leaderWorkerTemplate"]
    assert group["restartPolicy"] == "RecreateGroupOnPodRestart", "a rank that is alone serves nobody"
    leader, other = (group[template]["spec"] for template in ("leaderTemplate", "workerTemplate"))
    for pod in (leader, other):
        (container,) = pod["containers"]
        *torchrun, module = container["command"]
        assert module == FOLDERS["verify"]
        num_processes = int(dict(part.split("=") for part in torchrun if "=" in part)["--nproc-per-node"])
        assert container["resources"]["limits"][GPU] == num_processes
        variables = {each["name"]: each["value"] for each in container["env"]}
        assert variables == manifests.environment("verify")
        assert int(variables["OUTRIDER_TENSOR_PARALLEL"]) == group["size"] * num_processes
    (one,), (another,) = leader["containers"], other["containers"]
    assert one["command"] == another["command"]
    assert {"ports", "readinessProbe"}.isdisjoint(another)
    labels = group["workerTemplate"]["metadata"]["labels"]
    service = manifests.named("Service")["verify"]["spec"]["selector"]
    assert not service.items() <= labels.items(), "the coordinator would call a rank that does not serve"
    ranks = manifests.named("NetworkPolicy")["ranks"]["spec"]
    assert ranks["podSelector"]["matchLabels"].items() <= labels.items()


def test_torchrun_takes_what_the_pods_say() -> None:
    command = rendered("overlays/multi-host").container("verify")["command"]
    (package,) = find_spec("torch").submodule_search_locations  # not imported: that takes seconds
    source = (Path(package) / "distributed" / "run.py").read_text()
    flags = [part.partition("=")[0] for part in command if part.startswith("--")]
    assert all(f'"{flag}",' in source for flag in flags)
