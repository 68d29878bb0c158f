"""The manifests hang together, and each pod is placed, probed and locked up as it should be."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.config import CoordinatorConfig
from outrider.core.protocol.address import parse_address
from outrider.machine import limits
from outrider.settings import ENVIRONMENT_PREFIX, BadSettingsError
from outrider.v1 import draft_pb2, generation_pb2, verify_pb2
from outrider.worker import config
from tests.house.generated import CONFIGS

from .conftest import labels_in_group

if TYPE_CHECKING:
    from .conftest import Manifests

FOLDERS = {"draft": "draft_service", "verify": "verify_service", "coordinator": "coordinator"}
"""The services' modules."""

PORTS = {name: parse_address(CONFIGS[folder].model_fields["listen"].default).port for name, folder in FOLDERS.items()}
"""The services' default ports."""

COLLECTOR_PORT = 4318
"""Where a telemetry collector takes OTLP over HTTP."""
HTTP_PORT = parse_address(CoordinatorConfig.model_fields["http"].default).port
"""Where the coordinator answers HTTP, too."""
METRICS_PORT = 9464
"""Where workers answer scrapers."""

RANKS = json.dumps({"podSelector": {"matchLabels": labels_in_group("verify", 0)}})
"""The ranks of a target over several hosts, which call one another."""

HEALTH_SERVICES = {
    "coordinator": generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name,
    "draft": draft_pb2.DESCRIPTOR.services_by_name["DraftService"].full_name,
    "verify": verify_pb2.DESCRIPTOR.services_by_name["VerifyService"].full_name,
}
"""The names under which readiness is asked for."""

WORKERS = ("draft", "verify")
"""The services that own a device."""

GPU = "nvidia.com/gpu"
"""The extended resource, which is also the key of the taint on GPU nodes."""

GPU_PRODUCT = "nvidia.com/gpu.product"
"""The node label that GPU feature discovery sets."""

each_service = pytest.mark.parametrize("name", PORTS)
each_worker = pytest.mark.parametrize("name", WORKERS)


def selected(selector: dict[str, Any], manifests: Manifests) -> set[str]:
    """The deployments whose pods a label selector (matchLabels and `In` expressions) selects."""
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    found: set[str] = set()
    for name in manifests.deployments():
        labels = manifests.deployment(name)["template"]["metadata"]["labels"]
        if selector.get("matchLabels", {}).items() <= labels.items() and all(
            labels.get(expression["key"]) in expression["values"] for expression in expressions
        ):
            found.add(name)
    return found


def test_each_service_has_its_objects(manifests: Manifests) -> None:
    assert manifests.deployments() == PORTS.keys()
    for kind in ("Service", "ServiceAccount", "PodDisruptionBudget"):
        assert manifests.named(kind).keys() == PORTS.keys()
    for found in manifests.objects:
        assert "namespace" not in found["metadata"]
        assert found["metadata"]["labels"]["app.kubernetes.io/part-of"] == "outrider"


def test_selectors_select_what_they_are_for(manifests: Manifests) -> None:
    for name in PORTS:
        if name in manifests.named("Deployment"):
            assert selected(manifests.deployment(name)["selector"], manifests) == {name}
        assert selected({"matchLabels": manifests.named("Service")[name]["spec"]["selector"]}, manifests) == {name}
        budget = manifests.named("PodDisruptionBudget")[name]["spec"]
        assert selected(budget["selector"], manifests) == {name}
        # A budget that no pod may leave would block the maintenance of nodes for ever.
        assert budget["maxUnavailable"] >= 1
        assert manifests.pod(name)["serviceAccountName"] == f"outrider-{name}"
        if name != "verify":
            affinity = manifests.pod(name)["affinity"]["podAffinity"]
            (term,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
            assert selected(term["podAffinityTerm"]["labelSelector"], manifests) == {"verify"}


def test_only_the_coordinator_reaches_the_workers(manifests: Manifests) -> None:
    policy = manifests.named("NetworkPolicy")["workers"]
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert selected(policy["spec"]["podSelector"], manifests) == set(WORKERS)
    (rule,) = policy["spec"]["ingress"]
    (peer,) = rule["from"]
    assert peer.keys() == {"podSelector"}
    assert selected(peer["podSelector"], manifests) == {"coordinator"}
    assert [port["port"] for port in rule["ports"]] == [PORTS[name] for name in WORKERS]


def destinations(manifests: Manifests, name: str) -> Iterator[tuple[str, set[tuple[str, int]]]]:
    """Whom the pods of a deployment may call by all policies that select them, each with protocols and ports."""
    for policy in manifests.named("NetworkPolicy").values():
        spec = policy["spec"]
        if "Egress" not in spec["policyTypes"] or name not in selected(spec["podSelector"], manifests):
            continue
        for rule in spec.get("egress", ()):
            ports = {(port.get("protocol", "TCP"), port["port"]) for port in rule["ports"]}
            assert ports, "without ports a rule allows all"
            assert rule["to"], "without peers a rule allows all"
            for peer in rule["to"]:
                yield json.dumps(peer, sort_keys=True), ports


def test_a_pod_calls_dns_the_collector_and_the_coordinator_its_workers(manifests: Manifests) -> None:
    for name in PORTS:
        found = dict(destinations(manifests, name))
        labels = {
            worker: json.dumps({"podSelector": {"matchLabels": {"app.kubernetes.io/name": f"outrider-{worker}"}}})
            for worker in WORKERS
        }
        workers = {peer: ports for peer, ports in found.items() if peer in labels.values()}
        assert workers == (
            {labels[worker]: {("TCP", PORTS[worker])} for worker in WORKERS} if name not in WORKERS else {}
        )
        dns = {peer: ports for peer, ports in found.items() if "kube-dns" in peer or "169.254.20.10/32" in peer}
        assert len(dns) == 2
        assert all(ports == {("UDP", 53), ("TCP", 53)} for ports in dns.values())
        collector = {peer: ports for peer, ports in found.items() if "otel-collector" in peer}
        assert list(collector.values()) == [{("TCP", COLLECTOR_PORT)}]
        ranks = {RANKS} if name in manifests.named("LeaderWorkerSet") else set[str]()
        assert found.keys() == workers.keys() | dns.keys() | collector.keys() | ranks


def test_the_guide_sends_telemetry_where_the_policy_lets_it_go(repository: Path) -> None:
    guide = (repository / "k8s" / "README.md").read_text()
    assert f"OTEL_EXPORTER_OTLP_ENDPOINT=http://otel-collector:{COLLECTOR_PORT}" in guide


@each_worker
def test_threads_on_cpu_follow_the_limit(
    on_cpu: Manifests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Nothing in the overlay has to say so."""
    limit = int(on_cpu.container(name)["resources"]["limits"]["cpu"])
    variables = on_cpu.environment(name)
    assert {"OMP_NUM_THREADS", "OUTRIDER_NUM_THREADS", "OUTRIDER_CORES"}.isdisjoint(variables)
    for path, text in {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": f"{limit * 100_000} 100000"}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"{text}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(config, "num_cores", partial(limits.num_cores, tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert limits.num_cores(tmp_path) == limit
    assert 1 <= config.WorkerConfig(model=variables["OUTRIDER_MODEL"], listen="").num_threads <= limit


def test_one_port_from_address_to_socket(manifests: Manifests) -> None:
    for name in PORTS:
        port = PORTS[name]
        service = manifests.named("Service")[name]["spec"]
        assert manifests.environment(name)["OUTRIDER_LISTEN"] == f"0.0.0.0:{port}"
        assert manifests.environment(name).get("OUTRIDER_HTTP") == (
            f"0.0.0.0:{HTTP_PORT}" if name == "coordinator" else None
        )
        assert manifests.environment(name).get("OUTRIDER_METRICS") == (
            f"0.0.0.0:{METRICS_PORT}" if name in WORKERS else None
        )
        in_plain_text = "tls" not in manifests.components
        assert manifests.environment(name).get("OUTRIDER_INSECURE") == ("true" if in_plain_text else None)
        http = [HTTP_PORT] if name == "coordinator" else []
        assert manifests.container(name)["ports"] == [
            {"name": "grpc", "containerPort": port},
            *({"name": "http", "containerPort": each} for each in http),
            *({"name": "metrics", "containerPort": METRICS_PORT} for _ in range(name in WORKERS)),
        ]
        h2c, plain = ("kubernetes.io/h2c", "http") if in_plain_text else ("https", "https")
        assert service["ports"] == [
            {"name": "grpc", "port": port, "targetPort": "grpc", "appProtocol": h2c},
            *({"name": "http", "port": each, "targetPort": "http", "appProtocol": plain} for each in http),
        ]
        if name in WORKERS:
            assert service["clusterIP"] == "None"
            assert service["publishNotReadyAddresses"] is False
            address = manifests.environment("coordinator")[f"OUTRIDER_{name.upper()}"]
            assert address == f"dns:///outrider-{name}:{port}"
        else:
            assert service["type"] == "ClusterIP"


def test_probes_ask_for_the_right_health(manifests: Manifests) -> None:
    for name in PORTS:
        container = manifests.container(name)
        startup, readiness, liveness = (container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness"))
        if name in WORKERS:
            assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
        if "tls" in manifests.components:
            assert not any("grpc" in probe for probe in (startup, readiness, liveness))
            port = "metrics" if name in WORKERS else "http"
            asked = [probe["httpGet"] for probe in (startup, readiness, liveness)]
            assert all((probe["port"], probe["scheme"]) == (port, "HTTPS") for probe in asked)
            # Without a verify worker the coordinator is not ready; restarting it would not help.
            started = "/readyz" if name in WORKERS else "/healthz"
            assert [probe["path"] for probe in asked] == [started, "/readyz", "/healthz"]
            continue
        assert {probe["grpc"]["port"] for probe in (startup, readiness, liveness)} == {PORTS[name]}
        assert readiness["grpc"]["service"] == HEALTH_SERVICES[name]
        assert "service" not in liveness["grpc"]
        if name in WORKERS:
            assert startup["grpc"]["service"] == HEALTH_SERVICES[name]
        else:
            assert "service" not in startup["grpc"]


def test_a_rollout_has_not_failed_while_pods_load(manifests: Manifests) -> None:
    def startup_seconds(name: str) -> int:
        probe = manifests.container(name)["startupProbe"]
        return probe["periodSeconds"] * probe["failureThreshold"]

    for name in manifests.named("Deployment"):
        # A coordinator is ready when a verify worker is.
        slowest = max(startup_seconds(name), startup_seconds("verify") if name == "coordinator" else 0)
        assert manifests.deployment(name)["progressDeadlineSeconds"] > slowest


def test_the_drain_fits_into_the_grace_period(manifests: Manifests) -> None:
    for name in PORTS:
        drain_seconds = float(manifests.environment(name)["OUTRIDER_DRAIN_SECONDS"])
        # A pod that drained at once would refuse what comes until everybody knows that it goes.
        hook = manifests.container(name)["lifecycle"]["preStop"]
        assert hook["sleep"]["seconds"] > 0
        assert manifests.pod(name)["terminationGracePeriodSeconds"] > hook["sleep"]["seconds"] + drain_seconds


def test_pods_are_locked_up(manifests: Manifests) -> None:
    for pod in (template["spec"] for template in manifests.templates()):
        assert pod["automountServiceAccountToken"] is False
        # Otherwise each Service in the namespace adds variables, some of which begin with OUTRIDER_.
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {"hostNetwork", "hostPID", "hostIPC", "initContainers"}.isdisjoint(pod)
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_only_the_temporary_folder_is_writable(manifests: Manifests) -> None:
    for name in PORTS:
        volumes = {volume["name"]: volume for volume in manifests.pod(name)["volumes"]}
        mounts = manifests.container(name)["volumeMounts"]
        assert volumes.keys() == {mount["name"] for mount in mounts}
        shared = {"/dev/shm"} if "OUTRIDER_TENSOR_PARALLEL" in manifests.environment(name) else set[str]()
        kept = {"/var/cache/outrider"} & {manifests.environment(name).get("OUTRIDER_COMPILE_CACHE", "")}
        assert {mount["mountPath"] for mount in mounts if not mount.get("readOnly")} == {"/tmp", *shared, *kept}
        assert volumes["tmp"]["emptyDir"]["sizeLimit"]
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert (claim.get("readOnly") is True) is not (volume["name"] == "compile-cache")
                assert claim["claimName"].removeprefix("outrider-") in manifests.named("PersistentVolumeClaim")


@each_worker
def test_workers_read_their_model_from_the_volume(on_gpus: Manifests, name: str) -> None:
    mounted = [PurePosixPath(mount["mountPath"]) for mount in on_gpus.container(name)["volumeMounts"]]
    assert PurePosixPath(on_gpus.environment(name)["OUTRIDER_MODEL"]).parent in mounted


@each_worker
def test_workers_on_cpu_read_the_model_in_the_image(on_cpu: Manifests, repository: Path, name: str) -> None:
    folder = on_cpu.environment(name)["OUTRIDER_MODEL"]
    dockerfile = (repository / f"{name}_service" / "Dockerfile").read_text()
    assert f"COPY {folder.removeprefix('/app/')} {folder}\n" in dockerfile


def test_requests_and_limits_are_set(manifests: Manifests) -> None:
    for container in (each for template in manifests.templates() for each in template["spec"]["containers"]):
        resources = container["resources"]
        assert resources["requests"].keys() >= {"cpu", "memory"}
        assert resources["limits"].keys() >= {"cpu", "memory"}


def test_no_image_is_whatever_is_latest(manifests: Manifests) -> None:
    for template in manifests.templates():
        images = [container["image"] for container in template["spec"]["containers"]]
        images += [volume["image"]["reference"] for volume in template["spec"]["volumes"] if "image" in volume]
        for image in images:
            tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
            assert tag not in ("", "latest"), image


def test_every_variable_is_a_setting_and_its_value_is_taken(
    manifests: Manifests, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in [variable for variable in os.environ if variable.startswith(ENVIRONMENT_PREFIX)]:
        monkeypatch.delenv(variable)
    for name in PORTS:
        check_variables(manifests, name)


def check_variables(manifests: Manifests, name: str) -> None:
    """The service takes its variables, of which this process has none."""
    kind = CONFIGS[FOLDERS[name]]
    variables = manifests.environment(name)
    ours = {variable for variable in variables if variable.startswith(ENVIRONMENT_PREFIX)}
    assert all(re.match(r"(OTEL|HF)_|PYTHON|OMP_NUM_THREADS$", variable) for variable in variables.keys() - ours)
    values = {variable.removeprefix(ENVIRONMENT_PREFIX).lower(): variables[variable] for variable in ours}
    assert values.keys() <= kind.model_fields.keys()
    # What is wrong with them here is that files are not, which a pod gets by its image or a volume.
    folders = ("/app/models", *(mount["mountPath"] for mount in manifests.container(name)["volumeMounts"]))
    for problem in kind(**values).problems():
        assert values[problem.setting].startswith(tuple(f"{folder}/" for folder in folders)), problem.text


@pytest.mark.parametrize("wrong", [{"insecure": "perhaps"}, {"metrics": "9464"}, {"tls_cert": "/certificates/tls.crt"}])
def test_a_value_that_cannot_be_is_not_taken(base: Manifests, wrong: dict[str, str]) -> None:
    values = {"model": "ngram", "listen": base.environment("draft")["OUTRIDER_LISTEN"], "insecure": "true"}
    CONFIGS["draft_service"].checked(**values)
    with pytest.raises(BadSettingsError, match=next(iter(wrong)).replace("_", "-")):
        CONFIGS["draft_service"].checked(**values | wrong)


def assert_on_gpus(manifests: Manifests) -> None:
    """Each worker owns one GPU, draft and verify have different ones, the coordinator has none."""
    for name in WORKERS:
        assert manifests.environment(name)["OUTRIDER_DEVICE"] == "cuda"
        assert manifests.container(name)["resources"]["limits"][GPU] == 1
        assert manifests.pod(name)["tolerations"] == [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
        # An update must not wait for a GPU that nobody has.
        assert manifests.deployment(name)["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    draft_product, verify_product = (manifests.pod(name)["nodeSelector"][GPU_PRODUCT] for name in WORKERS)
    assert draft_product != verify_product
    assert "nvidia" not in json.dumps(manifests.deployment("coordinator")).lower()


def test_a_small_card_drafts_and_a_big_one_verifies(on_gpus: Manifests) -> None:
    assert_on_gpus(on_gpus)


def test_an_overlay_swaps_both_kinds(on_gpus: Manifests, on_other_gpus: Manifests) -> None:
    assert_on_gpus(on_other_gpus)
    for name in WORKERS:
        assert on_other_gpus.pod(name)["nodeSelector"] != on_gpus.pod(name)["nodeSelector"]


def test_nothing_asks_for_a_gpu_on_cpu(on_cpu: Manifests) -> None:
    assert "nvidia" not in json.dumps(on_cpu.objects).lower()
    assert not on_cpu.named("PersistentVolumeClaim")
    for name in WORKERS:
        assert on_cpu.environment(name)["OUTRIDER_DEVICE"] == "cpu"
        assert {"nodeSelector", "tolerations"}.isdisjoint(on_cpu.pod(name))
