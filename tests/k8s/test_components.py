"""What each component and overlay is for, in the objects that it makes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import yaml

from outrider.core.protocol.identity import COORDINATOR_NAME, DRAFTER_NAME, VERIFIER_NAME
from tests.house.generated import CONFIGS

from .conftest import (
    COMBINATIONS,
    COMPONENTS,
    IN_TURN,
    K8S,
    OVERLAYS,
    PRODUCTION,
    Combination,
    Manifests,
    built_on,
    having,
    in_use,
    kustomized,
    labels_in_group,
    rendered,
)
from .test_k8s_policy import (
    GPU,
    GPU_PRODUCT,
    HTTP_PORT,
    METRICS_PORT,
    PORTS,
    WORKERS,
    each_service,
    each_worker,
    selected,
)

PART_OF = {"matchLabels": {"app.kubernetes.io/part-of": "outrider"}}
NAMES = {"coordinator": COORDINATOR_NAME, "verify": VERIFIER_NAME, "draft": DRAFTER_NAME}
"""The names that certificates bear, as the services look for them."""


def test_every_component_is_rendered_in_a_combination() -> None:
    assert {component for _, components in (*COMBINATIONS, *IN_TURN) for component in components} == set(COMPONENTS)
    assert {overlay for overlay, _ in COMBINATIONS} == set(OVERLAYS)


def pairs(folders: Iterable[str]) -> set[frozenset[str]]:
    return {frozenset(pair) for pair in combinations(folders, 2)}


APART = {
    # By the guide: what is about the Deployment of the verify worker, and what claims one card.
    *(frozenset({"overlays/multi-host", each}) for each in ("dra", "models-image", "compile-cache", "autoscaling")),
    *(frozenset({"dra", f"overlays/{each}"}) for each in ("cpu", "mig", "multi-gpu")),
    # It goes with one device.
    *(frozenset({"in-turn", f"overlays/{each}"}) for each in ("multi-gpu", "multi-host")),
    # Pickers scrape without TLS and token.
    *(frozenset({"inference-pool", each}) for each in (*PRODUCTION[:2], "monitoring-tls", "gateway-tls")),
    frozenset({"inference-pool", "no-reflection"}),
    frozenset({"inference-pool", "overlays/production"}),
}
"""What is not meant to be together."""


def test_every_two_folders_that_fit_each_other_are_rendered_together() -> None:
    combinations_made = (*COMBINATIONS, *IN_TURN)
    rendered_together = {pair for each in combinations_made for pair in pairs({*built_on(each[0]), *in_use(*each)})}
    overlays = pairs(OVERLAYS)
    assert pairs((*OVERLAYS, *COMPONENTS)) - overlays - rendered_together == APART


def test_the_guide_has_a_line_for_each_folder(repository: Path) -> None:
    guide = (repository / "k8s" / "README.md").read_text()
    lines = re.findall(r"^\| `((?:base|overlays|components)[\w/-]*)` \| \S.* \|$", guide, flags=re.M)
    assert sorted(lines) == sorted([*OVERLAYS, *(f"components/{component}" for component in COMPONENTS)])
    for name, port in PORTS.items():
        assert f"| `outrider-{name}` | {port} |" in guide


def test_the_guides_kustomizations_render(repository: Path, tmp_path: Path) -> None:
    guide = (repository / "k8s" / "README.md").read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```", guide, flags=re.M | re.S)
    blocks = [block for block in blocks if "Kustomization" in block]
    assert blocks
    for index, block in enumerate(blocks):
        folder = tmp_path / str(index)
        folder.mkdir()
        here = os.path.relpath(K8S, folder.resolve())
        (folder / "kustomization.yaml").write_text(block.replace("../outrider/k8s/", f"{here}/"))
        made = Manifests("", frozenset(), kustomized(folder))
        assert {found["kind"] for found in made.objects} >= {"Deployment", "Service"}
        for name in made.deployments():
            assert re.fullmatch(r"\S+/outrider-\w+@sha256:[0-9a-f]{64}", made.container(name)["image"])


def test_the_guides_commands_name_objects_that_are_there(repository: Path, in_production: Manifests) -> None:
    guide = (repository / "k8s" / "README.md").read_text()
    named = set(re.findall(r"\b(deployment|service|job)/outrider-(\w+)", guide))
    assert {kind for kind, _ in named} == {"deployment", "service", "job"}
    for kind, name in named:
        assert name in in_production.named(kind.capitalize())
    (components,) = re.findall(r"app\.kubernetes\.io/component in \(([^)]*)\)", guide)
    pods = [in_production.deployment(name)["template"]["metadata"]["labels"] for name in PORTS]
    assert sorted(labels["app.kubernetes.io/component"] for labels in pods) == sorted(components.split(", "))


def test_the_guide_makes_the_secrets_that_nobody_else_does(repository: Path, in_production: Manifests) -> None:
    guide = (repository / "k8s" / "README.md").read_text()
    made = dict(
        re.findall(r"create secret generic (?:--namespace \S+ )?(\S+) --from-(?:file|literal) ([^\s=]+)", guide)
    )
    of_certificates = {found["spec"]["secretName"] for found in in_production.named("Certificate").values()}
    assert in_production.secrets() - of_certificates <= made.keys()
    shown = in_production.named("PodMonitor")["coordinator"]["spec"]["podMetricsEndpoints"][0]["authorization"]
    assert made[shown["credentials"]["name"]] == shown["credentials"]["key"]
    (read,) = re.findall(r"get secret --namespace outrider (\S+)", guide)
    assert read in of_certificates


# Network policies


def sources(manifests: Manifests, name: str) -> dict[str, set[int]] | None:
    """Who may call the pods of a deployment, at which ports; None if no policy says, which lets everybody."""
    found: dict[str, set[int]] = {}
    closed = False
    for policy in manifests.named("NetworkPolicy").values():
        spec = policy["spec"]
        if "Ingress" not in spec["policyTypes"] or name not in selected(spec["podSelector"], manifests):
            continue
        closed = True
        for rule in spec.get("ingress", ()):
            assert rule["from"], "without peers a rule allows all"
            assert rule["ports"], "without ports a rule allows all"
            for peer in rule["from"]:
                labels = ",".join(map("=".join, peer["podSelector"]["matchLabels"].items()))
                found.setdefault(labels, set()).update(port["port"] for port in rule["ports"])
    return found if closed else None


def test_who_may_call_a_pod(manifests: Manifests) -> None:
    for name in PORTS:
        coordinators, prometheus = "app.kubernetes.io/name=outrider-coordinator", "app.kubernetes.io/name=prometheus"
        if name in WORKERS:
            expected = {coordinators: {PORTS["draft"], PORTS["verify"]}}
            if "monitoring" in manifests.components:
                expected |= {prometheus: {METRICS_PORT}}
            if name in manifests.named("LeaderWorkerSet"):
                expected |= {",".join(map("=".join, labels_in_group(name, 0).items())): {1024}}
        elif "isolation" in manifests.components:
            doors = {PORTS["coordinator"], HTTP_PORT}
            gateway = f"gateway.networking.k8s.io/gateway-name={GATEWAY}"
            expected = {"outrider-client=true": doors, gateway: doors, prometheus: {HTTP_PORT}}
        else:
            # A rule for scrapers alone would shut all others out.
            expected = None
        assert sources(manifests, name) == expected


def test_what_no_policy_names_is_closed_in_isolation(in_production: Manifests) -> None:
    closed = in_production.named("NetworkPolicy")["closed"]["spec"]
    assert closed == {"podSelector": PART_OF, "policyTypes": ["Ingress", "Egress"]}
    for template in in_production.templates():
        assert PART_OF["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_the_job_that_fetches_models_alone_leaves_the_cluster(manifests: Manifests) -> None:
    leaving = [
        policy
        for policy in manifests.named("NetworkPolicy").values()
        if any(
            peer.get("ipBlock", {}).get("cidr") in ("0.0.0.0/0", "::/0")
            for rule in policy["spec"].get("egress", ())
            for peer in rule["to"]
        )
    ]
    assert len(leaving) == len(manifests.named("Job"))
    for policy in leaving:
        assert selected(policy["spec"]["podSelector"], manifests) == set()
        (rule,) = policy["spec"]["egress"]
        assert rule["ports"] == [{"port": 443}]


# Certificates and tokens


@each_service
def test_certificates_bear_the_names_that_are_looked_for(in_production: Manifests, name: str) -> None:
    certificate = in_production.named("Certificate")[name]["spec"]
    assert NAMES[name] in certificate["dnsNames"]
    assert ("client auth" in certificate["usages"]) is (name == "coordinator")
    assert "server auth" in certificate["usages"]
    assert certificate["issuerRef"]["name"] == "outrider-ca"
    assert certificate["privateKey"]["rotationPolicy"] == "Always"
    hours = {field: int(certificate[field].removesuffix("h")) for field in ("duration", "renewBefore")}
    assert 0 < hours["renewBefore"] < hours["duration"]


def test_the_authority_signs_itself_and_outlives_what_it_signs(in_production: Manifests) -> None:
    authority = in_production.named("Certificate")["ca"]["spec"]
    issuers = in_production.named("Issuer")
    assert authority["isCA"] is True
    assert issuers["self-signed"]["spec"] == {"selfSigned": {}}
    assert authority["issuerRef"]["name"] == "outrider-self-signed"
    assert issuers["ca"]["spec"]["ca"]["secretName"] == authority["secretName"]
    assert int(authority["duration"].removesuffix("h")) > 10 * 168


@each_service
@having("tls")
def test_a_service_reads_its_own_certificate(combination: Combination, name: str) -> None:
    manifests = rendered(*combination)
    volumes = {volume["name"]: volume for volume in manifests.pod(name)["volumes"]}
    secret = volumes["certificates"]["secret"]
    assert secret["secretName"] == manifests.named("Certificate")[name]["spec"]["secretName"]
    # The key is the group's to read, and nobody else's.
    assert secret["defaultMode"] == 0o440
    security = manifests.pod(name)["securityContext"]
    assert security["fsGroup"] == security["runAsGroup"]
    (mount,) = (each for each in manifests.container(name)["volumeMounts"] if each["name"] == "certificates")
    assert "subPath" not in mount, "a file that is mounted alone is not renewed"
    variables = manifests.environment(name)
    files = [variables[f"OUTRIDER_TLS_{kind}"] for kind in ("CERT", "KEY", "CA")]
    assert files == [f"{mount['mountPath']}/{file}" for file in ("tls.crt", "tls.key", "ca.crt")]


@each_service
@having("no-reflection")
def test_tools_are_told_nothing(combination: Combination, name: str) -> None:
    assert rendered(*combination).environment(name)["OUTRIDER_REFLECTION"] == "false"


def test_only_the_coordinator_has_tokens(in_production: Manifests) -> None:
    assert "OUTRIDER_TOKENS" in in_production.environment("coordinator")
    assert all("outrider-tokens" not in json.dumps(in_production.deployment(name)) for name in WORKERS)


# Availability


@each_service
def test_there_are_two_of_each_apart_from_one_another(in_production: Manifests, name: str) -> None:
    twice = rendered("overlays/production")
    assert twice.deployment(name)["replicas"] == 2
    (spread,) = twice.pod(name)["topologySpreadConstraints"]
    assert selected(spread["labelSelector"], twice) == {name}
    assert twice.named("PodDisruptionBudget")[name]["spec"]["maxUnavailable"] < twice.deployment(name)["replicas"]


def test_drafters_come_behind_what_cannot_do_without(in_production: Manifests) -> None:
    classes = in_production.named("PriorityClass")
    value = {
        name: classes[in_production.pod(name)["priorityClassName"].removeprefix("outrider-")]["value"] for name in PORTS
    }
    assert value["draft"] < value["verify"] == value["coordinator"]


# Devices


def test_slices_of_one_card() -> None:
    manifests = rendered("overlays/mig")
    limits = {name: manifests.container(name)["resources"]["limits"] for name in WORKERS}
    slices = {name: [key for key in limits[name] if key.startswith("nvidia.com/")] for name in WORKERS}
    assert slices == {"draft": ["nvidia.com/mig-1g.10gb"], "verify": ["nvidia.com/mig-3g.40gb"]}
    for name in WORKERS:
        assert GPU_PRODUCT not in manifests.pod(name)["nodeSelector"]
        assert manifests.environment(name)["OUTRIDER_DEVICE"] == "cuda"


@each_worker
def test_a_worker_claims_the_first_card_that_is_free(name: str) -> None:
    manifests = rendered("overlays/gpu", ("dra",))
    (claim,) = manifests.pod(name)["resourceClaims"]
    resources = manifests.container(name)["resources"]
    assert resources["claims"] == [{"name": claim["name"]}]
    assert GPU not in resources["limits"], "a card by the device plugin, too"
    assert not manifests.pod(name).get("nodeSelector")
    template = manifests.named("ResourceClaimTemplate")[claim["resourceClaimTemplateName"].removeprefix("outrider-")]
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    cards = [card["selectors"][0]["cel"]["expression"] for card in request["firstAvailable"]]
    assert len(cards) == len(set(cards)) > 1
    assert len({card["name"] for card in request["firstAvailable"]}) == len(cards)
    assert {card["deviceClassName"] for card in request["firstAvailable"]} == {"gpu.nvidia.com"}


# Counts and autoscalers


def metric_names(repository: Path) -> set[str]:
    """What is told on /metrics, as docs/metrics.md has it and Prometheus writes it."""
    told = re.findall(r"^\| `(\w+)` \| (\w+) \|", (repository / "docs" / "metrics.md").read_text(), flags=re.M)
    return {f"{name}_total" if kind == "counter" else name for name, kind in told}


@each_worker
def test_autoscalers_ask_for_what_is_counted(repository: Path, in_production: Manifests, name: str) -> None:
    scaled = in_production.named("ScaledObject")[name]["spec"]
    assert scaled["scaleTargetRef"]["name"] == f"outrider-{name}"
    queries = [trigger["metadata"]["query"] for trigger in scaled["triggers"]]
    named = {metric for query in queries for metric in re.findall(r"\boutrider_\w+", query)}
    assert named <= metric_names(repository)
    wanted = {"draft": "outrider_spec_decode_num_accepted_tokens_total", "verify": "outrider_num_requests_waiting"}
    assert wanted[name] in named
    jobs = {job for query in queries for job in re.findall(r'job="outrider-(\w+)"', query)}
    assert jobs == {"coordinator" if name == "draft" else name}
    assert jobs <= in_production.named("PodMonitor").keys()


def test_a_verifier_more_comes_before_all_sessions_are_taken(in_production: Manifests) -> None:
    most = CONFIGS["verify_service"].model_fields["max_sessions"].default
    triggers = in_production.named("ScaledObject")["verify"]["spec"]["triggers"]
    (sessions,) = (each["metadata"] for each in triggers if "outrider_worker_sessions" in each["metadata"]["query"])
    assert int(sessions["threshold"]) < most


@each_service
def test_the_autoscaler_alone_says_how_many(in_production: Manifests, name: str) -> None:
    assert "replicas" not in in_production.deployment(name)
    scaled = in_production.named("HorizontalPodAutoscaler" if name == "coordinator" else "ScaledObject")[name]["spec"]
    assert scaled["scaleTargetRef"]["name"] == f"outrider-{name}"


def test_the_guide_counts_the_pods_of_its_pool(repository: Path, in_production: Manifests) -> None:
    scalers = [*in_production.named("HorizontalPodAutoscaler").values(), *in_production.named("ScaledObject").values()]
    fewest = sum(found["spec"].get("minReplicas", found["spec"].get("minReplicaCount")) for found in scalers)
    assert f"targets shows {fewest} pods or more" in (repository / "k8s" / "README.md").read_text()


@each_service
@having("monitoring")
def test_every_service_is_scraped_where_it_answers(combination: Combination, name: str) -> None:
    manifests = rendered(*combination)
    monitor = manifests.named("PodMonitor")[name]["spec"]
    assert selected(monitor["selector"], manifests) == {name}
    # The alerts and the autoscalers know a service by this job.
    assert manifests.deployment(name)["template"]["metadata"]["labels"][monitor["jobLabel"]] == f"outrider-{name}"
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["port"] == ("metrics" if name in WORKERS else "http")
    assert endpoint["port"] in [port["name"] for port in manifests.container(name)["ports"]]
    assert (endpoint.get("scheme") == "https") is ("tls" in manifests.components)
    if "tls" in manifests.components:
        assert endpoint["tlsConfig"]["serverName"] == NAMES[name]
        assert endpoint["tlsConfig"]["ca"]["secret"]["name"] in manifests.secrets()
    assert ("authorization" in endpoint) is ("tokens" in manifests.components and name not in WORKERS)


def test_alerts_and_dashboard_are_those_that_are_tested(repository: Path, in_production: Manifests) -> None:
    monitoring = repository / "k8s" / "monitoring"
    assert in_production.named("PrometheusRule")["outrider"] == yaml.safe_load((monitoring / "alerts.yaml").read_text())
    dashboard = in_production.named("ConfigMap")["dashboard"]
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1", "what the sidecar of Grafana looks for"
    data = dashboard["data"]
    assert json.loads(data["dashboard.json"]) == json.loads((monitoring / "dashboard.json").read_text())


# Gateways

GATEWAY = "outrider"


@having("gateway")
def test_routes_lead_to_the_coordinator(combination: Combination) -> None:
    manifests = rendered(*combination)
    ports = {port["port"] for port in manifests.named("Service")["coordinator"]["spec"]["ports"]}
    for kind, port in {"GRPCRoute": PORTS["coordinator"], "HTTPRoute": HTTP_PORT}.items():
        route = manifests.named(kind)[GATEWAY]["spec"]
        assert [parent["name"] for parent in route["parentRefs"]] == [GATEWAY]
        (rule,) = route["rules"]
        if "inference-pool" in manifests.components and kind == "HTTPRoute":
            (backend,) = rule["backendRefs"]
            pool = manifests.named("InferencePool")[backend["name"]]["spec"]
            assert selected(pool["selector"], manifests) == {"coordinator"}
            assert pool["targetPorts"] == [{"number": port}]
        else:
            assert rule["backendRefs"] == [{"name": "outrider-coordinator", "port": port}]
            assert port in ports


def test_counts_and_pages_are_not_for_the_world(in_production: Manifests) -> None:
    (rule,) = in_production.named("HTTPRoute")[GATEWAY]["spec"]["rules"]
    assert {match["path"]["value"] for match in rule["matches"]} == {"/v1", "/tokenize", "/detokenize"}


def test_a_gateway_knows_the_coordinator_by_its_certificate(in_production: Manifests) -> None:
    policy = in_production.named("BackendTLSPolicy")["coordinator"]["spec"]
    assert [target["name"] for target in policy["targetRefs"]] == ["outrider-coordinator"]
    assert policy["validation"]["hostname"] == NAMES["coordinator"]
