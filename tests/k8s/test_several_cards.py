"""Targets over the cards of one pod, and of several."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from outrider.settings import ENVIRONMENT_PREFIX
from tests.house.generated import CONFIGS

from .conftest import COMBINATIONS, Manifests, id_of, labels_in_group, rendered
from .test_k8s_policy import FOLDERS, GPU, selected

several_pods = pytest.mark.parametrize(
    "manifests", [each for each in COMBINATIONS if each[0] == "overlays/multi-host"], indirect=True, ids=id_of
)

OF_THE_PORT = tuple(
    f"{ENVIRONMENT_PREFIX}{name}" for name in ("LISTEN", "INSECURE", "TLS_", "REFLECTION", "METRICS", "DRAIN_SECONDS")
)
"""The beginnings of variables that a rank without a port has no use for."""


def test_a_target_over_the_cards_of_one_pod() -> None:
    manifests = rendered("overlays/multi-gpu")
    num_ranks = int(manifests.environment("verify")["OUTRIDER_TENSOR_PARALLEL"])
    assert manifests.container("verify")["resources"]["limits"][GPU] == num_ranks > 1
    assert "OUTRIDER_TENSOR_PARALLEL" not in manifests.environment("draft")
    volumes = {volume["name"]: volume for volume in manifests.pod("verify")["volumes"]}
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"


@several_pods
def test_a_target_over_the_cards_of_several_pods(manifests: Manifests) -> None:
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
        assert int(variables["OUTRIDER_TENSOR_PARALLEL"]) == group["size"] * num_processes
    (one,), (another,) = leader["containers"], other["containers"]
    assert one["command"] == another["command"]
    assert {"ports", "readinessProbe"}.isdisjoint(another)
    labels = group["workerTemplate"]["metadata"]["labels"]
    service = manifests.named("Service")["verify"]["spec"]["selector"]
    assert not service.items() <= labels.items(), "the coordinator would call a rank that does not serve"


@several_pods
def test_ranks_are_told_of_the_model_what_rank_0_is_told_and_have_no_key(manifests: Manifests) -> None:
    other = manifests.group("verify")["leaderWorkerTemplate"]["workerTemplate"]["spec"]
    told = {each["name"]: each["value"] for each in other["containers"][0]["env"]}
    serving = manifests.environment("verify")
    assert told == {name: value for name, value in serving.items() if not name.startswith(OF_THE_PORT)}
    assert not any("secret" in volume for volume in other["volumes"])
    values = {name.removeprefix(ENVIRONMENT_PREFIX).lower(): value for name, value in told.items()}
    assert {problem.setting for problem in CONFIGS[FOLDERS["verify"]](**values).problems()} <= {"model"}


@several_pods
def test_ranks_reach_those_of_their_own_group_alone(manifests: Manifests) -> None:
    num_groups = manifests.group("verify")["replicas"]
    policies = [found["spec"] for name, found in manifests.named("NetworkPolicy").items() if name.startswith("ranks-")]
    own = [{"matchLabels": labels_in_group("verify", index)} for index in range(len(policies))]
    assert [policy["podSelector"] for policy in policies] == own
    assert len(own) >= num_groups, "the ranks of a group without a policy could not talk"
    for policy, group in zip(policies, own, strict=True):
        for rules, peers in (("ingress", "from"), ("egress", "to")):
            (rule,) = policy[rules]
            assert rule[peers] == [{"podSelector": group}]


@several_pods
def test_ranks_find_one_another_before_any_is_ready(manifests: Manifests) -> None:
    """The controller makes a Service for that, but none of a name that is there already."""
    network = manifests.group("verify")["networkConfig"]
    taken = "verify" in manifests.named("Service")
    assert network["subdomainPolicy"] == ("UniquePerReplica" if taken else "Shared")


def test_two_groups_are_apart_from_one_another() -> None:
    manifests = rendered("overlays/multi-host", ("availability",))
    group = manifests.group("verify")
    assert group["replicas"] == 2
    for template in ("leaderTemplate", "workerTemplate"):
        assert group["leaderWorkerTemplate"][template]["spec"]["priorityClassName"] == "outrider-serving"
    (spread,) = manifests.pod("verify")["topologySpreadConstraints"]
    assert selected(spread["labelSelector"], manifests) == {"verify"}


def test_torchrun_takes_what_the_pods_say() -> None:
    command = rendered("overlays/multi-host").container("verify")["command"]
    (package,) = find_spec("torch").submodule_search_locations  # not imported: that takes seconds
    source = (Path(package) / "distributed" / "run.py").read_text()
    flags = [part.partition("=")[0] for part in command if part.startswith("--")]
    assert all(f'"{flag}",' in source for flag in flags)
