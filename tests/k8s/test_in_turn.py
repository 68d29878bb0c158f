"""The component `in-turn`: no draft worker is left, and nothing that speaks of one; the verify worker has its model."""

from __future__ import annotations

import json
import os

import pytest

from outrider.settings import ENVIRONMENT_PREFIX

from .conftest import IN_TURN, Combination, Manifests, id_of, rendered
from .test_k8s_policy import check_variables
from .test_k8s_schema import VERSIONS, check

SERVICES = {"coordinator", "verify"}


@pytest.fixture(params=IN_TURN, ids=id_of)
def in_turn(request: pytest.FixtureRequest) -> Manifests:
    """Each combination in turn."""
    return rendered(*request.param)


def test_nothing_of_a_draft_worker_is_left(in_turn: Manifests) -> None:
    assert in_turn.deployments() == SERVICES
    for kind in ("Service", "ServiceAccount", "PodDisruptionBudget"):
        assert in_turn.named(kind).keys() == SERVICES
    assert "draft" not in {found["metadata"]["labels"].get("app.kubernetes.io/component") for found in in_turn.objects}
    # Rules of the network may name pods that there are not.
    others = [found for found in in_turn.objects if found["kind"] != "NetworkPolicy"]
    assert "outrider-draft:" not in json.dumps(others)
    assert '"outrider-draft"' not in json.dumps(others)


def test_a_verify_worker_finds_both_models_and_the_coordinator_looks_for_no_drafter(
    in_turn: Manifests, monkeypatch: pytest.MonkeyPatch
) -> None:
    (models,) = (each for each in in_turn.container("verify")["volumeMounts"] if each["name"] == "models")
    variables = in_turn.environment("verify")
    assert variables["OUTRIDER_MODEL"] == f"{models['mountPath']}/target"
    assert variables["OUTRIDER_DRAFT_MODEL"] == f"{models['mountPath']}/draft"
    assert in_turn.environment("coordinator")["OUTRIDER_DRAFT"] == ""
    for variable in [variable for variable in os.environ if variable.startswith(ENVIRONMENT_PREFIX)]:
        monkeypatch.delenv(variable)
    for name in SERVICES:
        check_variables(in_turn, name)


@pytest.mark.parametrize("combination", IN_TURN, ids=id_of)
def test_it_changes_nothing_else(combination: Combination) -> None:
    overlay, components = combination
    before, after = (rendered(overlay, each).objects for each in (components[:-1], components))
    kept = [found for found in before if found["metadata"]["labels"].get("app.kubernetes.io/component") != "draft"]
    changed = {found["metadata"]["name"] for found in after if found not in kept}
    assert changed == {"outrider-coordinator", "outrider-verify"}
    assert len(after) == len(kept)


def test_every_object_fits_the_schema(in_turn: Manifests) -> None:
    for found in in_turn.objects:
        if found["kind"] == "Deployment":
            check(json.dumps(found), VERSIONS[0])
