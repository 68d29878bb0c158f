"""The manifests are what Kubernetes' own schemas and those of custom resources allow, unknown fields refused."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jsonschema
import kubernetes_validate
import pytest
from referencing import Resource

from .custom_resources import REGISTRY, SPECIFICATIONS, schema_of
from .vendor import SUMS, sums

if TYPE_CHECKING:
    from .conftest import Manifests

VERSIONS = ("1.31", "1.34", "1.37")
"""The oldest release that the manifests are meant for, the newest whose schemas we have, and one between."""

SINCE = {("resource.k8s.io/v1", "ResourceClaimTemplate"): "1.34"}
"""What came later than the oldest release. A component that has it needs that release."""


@pytest.fixture(scope="module", autouse=True)
def schemas_are_read_once() -> Iterator[None]:
    """The validator reads megabytes for each object."""
    with pytest.MonkeyPatch.context() as patch:
        reader = kubernetes_validate.utils.schema_contents
        patch.setattr(kubernetes_validate.utils, "schema_contents", functools.cache(reader))
        yield


def kind_of(found: dict[str, Any]) -> tuple[Any, Any]:
    """API version and kind, by which the schema is known."""
    return found.get("apiVersion"), found.get("kind")


@functools.cache
def validator(kind: tuple[str, str]) -> jsonschema.Draft202012Validator:
    """What checks objects of a custom resource; pods in it by the definitions of the oldest release."""
    name = f"kubernetes-json-schema/v{VERSIONS[0]}.0-local-strict/_definitions.json"
    definitions = Resource.from_contents(kubernetes_validate.utils.schema_contents(name, VERSIONS[0]))
    return jsonschema.Draft202012Validator(schema_of(*kind), registry=definitions @ REGISTRY)


@functools.cache
def check(text: str, version: str) -> None:
    """Raises ValidationError if the object, as JSON, does not fit its schema. Combinations share most objects."""
    found = json.loads(text)
    if kind_of(found) in SPECIFICATIONS:
        validator(kind_of(found)).validate(found)
    else:
        # Lacking a release's schemas the validator takes older ones, and says which.
        assert kubernetes_validate.validate(found, version, strict=True) == version


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_the_schema(manifests: Manifests, version: str) -> None:
    assert manifests.objects
    for found in manifests.objects:
        if version >= SINCE.get(kind_of(found), version):
            check(json.dumps(found), version)


FREE = {"labels", "annotations", "matchLabels", "nodeSelector", "requests", "limits", "data"}
"""Fields whose own fields may have any name."""


def places(found: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of each field of a JSON value whose name may not be chosen."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield (*path, key)
            # The selector of a Service is labels, that of a NetworkPolicy is not.
            if key not in FREE and not (key == "selector" and all(isinstance(each, str) for each in value.values())):
                yield from places(value, (*path, key))
    elif isinstance(found, list):
        for index, value in enumerate(found):
            yield from places(value, (*path, index))


def at(found: Any, path: tuple[str | int, ...]) -> Any:
    """What is there."""
    return functools.reduce(lambda value, key: value[key], path, found)


def misspell(holder: dict[str, Any], key: str) -> None:
    """A field that nobody knows, in place of one."""
    holder[f"{key}z"] = holder.pop(key)


def mistype(holder: dict[str, Any], key: str) -> None:
    """A value of a type that no field has."""
    holder[key] = [0.5]


def spoilt(whole: dict[str, Any], spoil: Callable[[dict[str, Any], str], None]) -> Iterator[dict[str, Any]]:
    """The object with one field broken, each in turn."""
    for path in places(whole):
        broken = copy.deepcopy(whole)
        spoil(at(broken, path[:-1]), str(path[-1]))
        yield broken


def is_kubernetes_own(kind: tuple[str, str]) -> bool:
    """Whether the newest release has it without anything installed besides."""
    try:
        kubernetes_validate.validate(dict(zip(("apiVersion", "kind"), kind, strict=True)), VERSIONS[-1], strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return False
    except kubernetes_validate.ValidationError:
        pass
    return True


def test_every_custom_resource_has_a_schema(largest: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert {kind for kind in largest if not is_kubernetes_own(kind)} == SPECIFICATIONS.keys()


def test_nobody_has_edited_what_is_vendored() -> None:
    """`python -m tests.k8s.vendor` writes both."""
    assert SUMS.read_text() == sums()


@pytest.mark.parametrize("spoil", [misspell, mistype])
@pytest.mark.parametrize("version", VERSIONS)
def test_no_broken_field_of_kubernetes_own_fits(
    largest: dict[tuple[str, str], dict[str, Any]], version: str, spoil: Callable[[dict[str, Any], str], None]
) -> None:
    for kind, whole in largest.items():
        if kind not in SPECIFICATIONS and version >= SINCE.get(kind, version):
            for broken in spoilt(whole, spoil):
                if kind_of(broken) == kind:  # by which the schema is known
                    with pytest.raises(kubernetes_validate.ValidationError):
                        kubernetes_validate.validate(broken, version, strict=True)


@pytest.mark.parametrize("spoil", [misspell, mistype])
@pytest.mark.parametrize("kind", SPECIFICATIONS, ids="/".join)
def test_no_broken_field_of_a_custom_resource_fits(
    largest: dict[tuple[str, str], dict[str, Any]],
    kind: tuple[str, str],
    spoil: Callable[[dict[str, Any], str], None],
) -> None:
    for broken in spoilt(largest[kind], spoil):
        with pytest.raises(jsonschema.ValidationError):
            validator(kind).validate(broken)


def test_rendering_leaves_the_base_as_it_is_written(base: Manifests, rendered_base: Manifests) -> None:
    def by_name(manifests: Manifests) -> dict[tuple[str, str], object]:
        return {(found["kind"], found["metadata"]["name"]): found for found in manifests.objects}

    assert len(by_name(base)) == len(base.objects)
    assert by_name(rendered_base) == by_name(base)
