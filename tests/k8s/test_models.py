"""Where workers have their models from: a volume that a job fills, or an image."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .conftest import K8S, Manifests, rendered
from .test_k8s_policy import WORKERS

MODELS = ("draft", "target")


def test_a_models_image_leaves_nothing_of_the_volume() -> None:
    manifests = rendered("overlays/gpu", ("models-image",))
    assert not manifests.named("PersistentVolumeClaim").keys() | manifests.named("Job").keys()
    for name, model in zip(WORKERS, MODELS, strict=True):
        (volume,) = (each for each in manifests.pod(name)["volumes"] if each["name"] == "models")
        assert volume.keys() == {"name", "image"}
        assert manifests.environment(name)["OUTRIDER_MODEL"] == f"/models/{model}"
        assert "OUTRIDER_NGRAM_TABLE" not in manifests.environment(name)
        dockerfile = (K8S / "components/models-image/Dockerfile").read_text()
        assert f"COPY {model} /{model}\n" in dockerfile
        assert f"-t {volume['image']['reference']} " in dockerfile


def fetching(on_gpus: Manifests) -> dict[str, Any]:
    """The container of the job."""
    (container,) = on_gpus.named("Job")["models"]["spec"]["template"]["spec"]["containers"]
    return container


def run_job(on_gpus: Manifests, tmp_path: Path, client: str) -> subprocess.CompletedProcess[str]:
    """The job's own script, in folders below `tmp_path`, with this as the hub's client."""
    container = fetching(on_gpus)
    variables = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    (tmp_path / "models").mkdir(exist_ok=True)
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin" / "hf").write_text(f"#!/bin/sh\n{client}\n")
    (tmp_path / "bin" / "hf").chmod(0o755)
    *shell, script = container["command"]
    return subprocess.run(
        [*shell, script.replace("/models/", f"{tmp_path}/models/")],
        env={**variables, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


WRITE = 'echo "$@" >> {calls}; mkdir -p "$6"; echo {{}} > "$6/config.json"'


def test_the_job_fetches_what_is_missing_and_no_more(on_gpus: Manifests, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    for _ in range(2):
        result = run_job(on_gpus, tmp_path, WRITE.format(calls=calls))
        assert result.returncode == 0, result.stderr
    assert [shlex.split(call)[1] for call in calls.read_text().splitlines()] == ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B"]
    assert sorted(folder.name for folder in (tmp_path / "models").iterdir()) == list(MODELS)


def test_a_model_that_was_fetched_in_part_is_not_there(on_gpus: Manifests, tmp_path: Path) -> None:
    broken = WRITE.format(calls=tmp_path / "calls") + "; exit 1"
    assert run_job(on_gpus, tmp_path, broken).returncode != 0
    assert not any((tmp_path / "models" / model).exists() for model in MODELS)


def test_the_hubs_client_takes_what_the_job_says(on_gpus: Manifests) -> None:
    (package,) = find_spec("huggingface_hub").submodule_search_locations  # not imported: that takes seconds
    source = ast.parse((Path(package) / "cli" / "download.py").read_text())
    (command,) = (each for each in source.body if isinstance(each, ast.FunctionDef) and each.name == "download")
    script = fetching(on_gpus)["command"][-1]
    flags = {flag.removeprefix("--").replace("-", "_") for flag in re.findall(r"--[a-z-]+", script)}
    assert flags == {"revision", "local_dir", "include"}
    assert flags <= {argument.arg for argument in command.args.args}
