"""The shapes of the custom resources that we make. Any other field is refused.

Most are vendored (`vendor.py`). Two are in no package of a registry, and are written by us, as far as we use them:

- LeaderWorkerSet (leaderworkerset.x-k8s.io/v1), compared field by field with `api/leaderworkerset/v1` of
  kubernetes-sigs/lws at 024af084. Its pods are Kubernetes' own.
- InferencePool (inference.networking.k8s.io/v1), compared likewise with `api/v1` of
  kubernetes-sigs/gateway-api-inference-extension after its release 1.5. What came after 1.0, such as a second port, is
  refused.

A field of these that we begin to use is looked up there and added here.
"""

from __future__ import annotations

import json
from typing import Any

from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from .vendor import CRDS, RESOURCES

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
NUMBER: Schema = {"type": "string", "pattern": r"^[0-9]+([.][0-9]+)?$"}
LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT: Schema = {"type": "integer", "minimum": 0}


def one_of(*values: object) -> Schema:
    """One of these values."""
    return {"enum": list(values)}


def fields(required: dict[str, Schema], **optional: Schema) -> Schema:
    """An object with these fields and no others."""
    properties = required | optional
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


def many(item: Schema, most: int) -> Schema:
    """A list of one such item or more."""
    return {"type": "array", "items": item, "minItems": 1, "maxItems": most}


INFERENCE_POOL = fields(
    {
        "selector": fields({"matchLabels": LABELS}),
        "targetPorts": many(fields({"number": PORT}), 1),
        "endpointPickerRef": fields(
            {"name": NAME, "port": fields({"number": PORT})}, failureMode=one_of("FailOpen", "FailClose")
        ),
    }
)

POD_TEMPLATE: Schema = {"$ref": "https://kubernetes.io/api/_definitions.json#/$defs/io.k8s.api.core.v1.PodTemplateSpec"}
"""In Kubernetes' own definitions, which the validator brings."""
LEADER_WORKER_SET = fields(
    {
        "replicas": COUNT,
        "leaderWorkerTemplate": fields(
            {"size": {"type": "integer", "minimum": 1}, "workerTemplate": POD_TEMPLATE},
            leaderTemplate=POD_TEMPLATE,
            restartPolicy=one_of("RecreateGroupOnPodRestart", "None"),
        ),
    },
    networkConfig=fields({"subdomainPolicy": one_of("Shared", "UniquePerReplica")}),
    rolloutStrategy=fields(
        {"type": one_of("RollingUpdate")},
        rollingUpdateConfiguration=fields({}, maxSurge=COUNT, maxUnavailable=COUNT),
    ),
    startupPolicy=one_of("LeaderCreated", "LeaderReady"),
)

PROMETHEUS_TRIGGER = fields(
    {
        "type": one_of("prometheus"),
        "metadata": fields({"serverAddress": TEXT, "query": TEXT, "threshold": NUMBER}),
    }
)
"""What KEDA's scaler of that type wants. For the resource itself `metadata` is a map of any texts."""

VENDORED: dict[str, Schema] = {kind: json.loads((CRDS / f"{kind}.json").read_text()) for _, kind in RESOURCES}
"""The specifications by their kinds."""
REGISTRY: Registry[Any] = Registry().with_resources(
    (kind, Resource.from_contents(schema, default_specification=DRAFT202012)) for kind, schema in VENDORED.items()
)
"""The same for validators, which find them by their kinds."""

SPECIFICATIONS: dict[tuple[str, str], Schema] = {
    **{(api_version, kind): {"$ref": kind} for api_version, kind in RESOURCES},
    ("inference.networking.k8s.io/v1", "InferencePool"): INFERENCE_POOL,
    ("keda.sh/v1alpha1", "ScaledObject"): {
        "$ref": "ScaledObject",
        "properties": {"triggers": {"items": PROMETHEUS_TRIGGER}},
    },
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"): LEADER_WORKER_SET,
}
"""The `spec` of each custom resource, by its API version and kind."""


def schema_of(api_version: str, kind: str) -> Schema:
    """The whole object's schema. Raises KeyError for what is no custom resource that we know."""
    return fields(
        {
            "apiVersion": one_of(api_version),
            "kind": one_of(kind),
            "metadata": fields({"name": NAME, "labels": LABELS}),
            "spec": SPECIFICATIONS[api_version, kind],
        }
    )
