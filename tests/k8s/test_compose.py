"""`compose.yaml` runs the images as they are built, with settings that the services take."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from outrider.settings import ENVIRONMENT_PREFIX
from tests.house.generated import CONFIGS

from .conftest import REPOSITORY, Manifests
from .test_dockerfiles import FOLDERS, dockerfile
from .test_k8s_policy import HTTP_PORT, METRICS_PORT, PORTS, WORKERS, each_service, each_worker

COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def test_each_service_is_there() -> None:
    assert SERVICES.keys() == PORTS.keys()


@each_service
def test_it_builds_what_the_makefile_builds(name: str) -> None:
    service = SERVICES[name]
    assert service["build"]["dockerfile"] == f"{FOLDERS[name]}/Dockerfile"
    assert service["image"] in re.findall(r"-t (\S+)", dockerfile(name))
    assert all(f"ARG {argument}" in dockerfile(name) for argument in service["build"].get("args", ()))


@each_service
def test_it_says_what_the_cluster_on_cpu_is_told(base: Manifests, name: str) -> None:
    """But for addresses, which are Compose's own names, and what is the default."""
    environment, told = SERVICES[name]["environment"], base.environment(name)
    ours = {variable.removeprefix(ENVIRONMENT_PREFIX).lower(): value for variable, value in environment.items()}
    settings = CONFIGS[FOLDERS[name]](**ours)
    assert all(ours[problem.setting].startswith("/app/models/") for problem in settings.problems())
    for variable in environment.keys() - {"OUTRIDER_DRAFT", "OUTRIDER_VERIFY"}:
        assert environment[variable] == told[variable]
    for variable in told.keys() - environment.keys():
        assert str(CONFIGS[FOLDERS[name]].model_fields[variable.removeprefix(ENVIRONMENT_PREFIX).lower()].default) in (
            told[variable],
            f"{told[variable]}.0",
        )


@each_worker
def test_the_coordinator_finds_its_workers_and_nobody_else_does(name: str) -> None:
    address = SERVICES["coordinator"]["environment"][f"OUTRIDER_{name.upper()}"]
    assert address == f"dns:///{name}:{PORTS[name]}"
    assert SERVICES[name]["networks"] == ["workers"]
    assert "workers" in SERVICES["coordinator"]["networks"]
    assert COMPOSE["networks"]["workers"] == {"internal": True}
    assert "ports" not in SERVICES[name]


def test_only_this_machine_reaches_the_coordinator() -> None:
    published = [f"127.0.0.1:{port}:{port}" for port in (PORTS["coordinator"], HTTP_PORT)]
    assert SERVICES["coordinator"]["ports"] == published


@each_service
def test_health_is_asked_where_it_is_answered(name: str) -> None:
    port = METRICS_PORT if name in WORKERS else HTTP_PORT
    command, python, flag, program = SERVICES[name]["healthcheck"]["test"]
    assert (command, python, flag) == ("CMD", "python", "-c")
    compile(program, "healthcheck", "exec")
    assert f"http://127.0.0.1:{port}/readyz" in program


@each_service
def test_containers_are_locked_up_and_bounded(base: Manifests, name: str) -> None:
    service, user = SERVICES[name], base.pod(name)["securityContext"]
    assert service["user"] == f"{user['runAsUser']}:{user['runAsGroup']}"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    drain = CONFIGS[FOLDERS[name]].model_fields["drain_seconds"].default
    assert int(service["stop_grace_period"].removesuffix("s")) > drain


def test_compose_itself_takes_the_file() -> None:
    docker = shutil.which("docker")
    compose = [docker, "compose"] if docker else []
    if not compose or subprocess.run([*compose, "version"], capture_output=True, check=False, timeout=60).returncode:
        pytest.skip("docker compose is not installed: the file is read, and not by Compose itself")
    result = subprocess.run(
        [*compose, "--file", str(REPOSITORY / "compose.yaml"), "config", "--format", "json"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["services"].keys() == SERVICES.keys()
