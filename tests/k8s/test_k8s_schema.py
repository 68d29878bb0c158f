"""The manifests are what Kubernetes' own schemas allow, unknown fields refused."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import kubernetes_validate
import pytest

if TYPE_CHECKING:
    from conftest import Manifests

VERSIONS = ("1.31", "1.34", "1.37")
"""The oldest release that the manifests are meant for, the newest whose schemas we have, and one between."""


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_the_schema(manifests: Manifests, version: str) -> None:
    assert manifests.objects
    for found in manifests.objects:
        # Lacking a release's schemas the validator takes older ones, and says which.
        assert kubernetes_validate.validate(found, version, strict=True) == version


@pytest.mark.parametrize("version", VERSIONS)
def test_a_misspelt_field_does_not(base: Manifests, version: str) -> None:
    broken = copy.deepcopy(base.named("Deployment")["draft"])
    pod = broken["spec"]["template"]["spec"]
    pod["nodeSelectors"] = pod.pop("nodeSelector")
    with pytest.raises(kubernetes_validate.ValidationError, match="nodeSelectors"):
        kubernetes_validate.validate(broken, version, strict=True)


def test_rendering_leaves_the_base_as_it_is_written(base: Manifests, rendered_base: Manifests) -> None:
    def by_name(manifests: Manifests) -> dict[tuple[str, str], object]:
        return {(found["kind"], found["metadata"]["name"]): found for found in manifests.objects}

    assert len(by_name(base)) == len(base.objects)
    assert by_name(rendered_base) == by_name(base)
