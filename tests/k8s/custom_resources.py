"""The shapes of the custom resources that we make, as far as we use them: any other field is refused.

Each is written by us after the documentation of who defines the resource: cert-manager 1.17 (cert-manager.io/v1), the
Prometheus operator 0.80 (monitoring.coreos.com/v1), KEDA 2.16 (keda.sh/v1alpha1), Gateway API 1.4
(gateway.networking.k8s.io/v1), its Inference Extension 1.0 (inference.networking.k8s.io/v1) and LeaderWorkerSet 0.7
(leaderworkerset.x-k8s.io/v1), whose pods are Kubernetes' own. A field that we begin to use is added here.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
NUMBER: Schema = {"type": "string", "pattern": r"^[0-9]+([.][0-9]+)?$"}
HOURS: Schema = {"type": "string", "pattern": r"^[0-9]+h$"}
DURATION: Schema = {"type": "string", "pattern": r"^([0-9]+(h|m|s|ms))+$"}
LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


def one_of(*values: object) -> Schema:
    """One of these values."""
    return {"enum": list(values)}


def fields(required: dict[str, Schema], **optional: Schema) -> Schema:
    """An object with these fields and no others."""
    properties = required | optional
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


def many(item: Schema, most: int | None = None) -> Schema:
    """A list of one such item or more."""
    return {"type": "array", "items": item, "minItems": 1} | ({} if most is None else {"maxItems": most})


MATCH_LABELS = fields({"matchLabels": LABELS})
SECRET_KEY = fields({"name": NAME, "key": TEXT})
PRIVATE_KEY = fields({"algorithm": one_of("ECDSA"), "size": one_of(256, 384, 521)}, rotationPolicy=one_of("Always"))

CERTIFICATE = fields(
    {"secretName": NAME, "issuerRef": fields({"name": NAME}, group=one_of("cert-manager.io"), kind=one_of("Issuer"))},
    commonName=TEXT,
    dnsNames=many(NAME),
    duration=HOURS,
    isCA={"type": "boolean"},
    privateKey=PRIVATE_KEY,
    renewBefore=HOURS,
    usages=many(one_of("digital signature", "server auth", "client auth")),
)

ISSUER = {"oneOf": [fields({"selfSigned": fields({})}), fields({"ca": fields({"secretName": NAME})})]}

POD_MONITOR = fields(
    {
        "selector": MATCH_LABELS,
        "podMetricsEndpoints": many(
            fields(
                {"port": TEXT},
                path=TEXT,
                interval=DURATION,
                scheme=one_of("http", "https"),
                authorization=fields({"credentials": SECRET_KEY}, type=TEXT),
                tlsConfig=fields({"serverName": TEXT, "ca": fields({"secret": SECRET_KEY})}),
            )
        ),
    },
    jobLabel=TEXT,
)

RULE = {
    "oneOf": [
        fields({"record": {"type": "string", "pattern": "^[a-zA-Z_:][a-zA-Z0-9_:]*$"}, "expr": TEXT}),
        fields({"alert": TEXT, "expr": TEXT}, **{"for": DURATION}, labels=LABELS, annotations=LABELS),
    ]
}
PROMETHEUS_RULE = fields({"groups": many(fields({"name": TEXT, "rules": many(RULE)}))})

SCALED_OBJECT = fields(
    {
        "scaleTargetRef": fields({"name": NAME}),
        "triggers": many(
            fields(
                {
                    "type": one_of("prometheus"),
                    "metadata": fields({"serverAddress": TEXT, "query": TEXT, "threshold": NUMBER}),
                }
            )
        ),
    },
    minReplicaCount={"type": "integer", "minimum": 0},
    maxReplicaCount={"type": "integer", "minimum": 1},
    advanced=fields(
        {
            "horizontalPodAutoscalerConfig": fields(
                {
                    "behavior": fields(
                        {
                            "scaleDown": fields(
                                {"stabilizationWindowSeconds": {"type": "integer", "minimum": 0, "maximum": 3600}},
                                policies=many(
                                    fields(
                                        {
                                            "type": one_of("Pods", "Percent"),
                                            "value": {"type": "integer", "minimum": 1},
                                            "periodSeconds": {"type": "integer", "minimum": 1, "maximum": 1800},
                                        }
                                    )
                                ),
                            )
                        }
                    )
                }
            )
        }
    ),
)

PARENTS = many(fields({"name": NAME}, sectionName=NAME), 32)
BACKENDS = many(
    {
        "oneOf": [
            fields({"name": NAME, "port": PORT}),
            fields({"group": one_of("inference.networking.k8s.io"), "kind": one_of("InferencePool"), "name": NAME}),
        ]
    },
    16,
)
GRPC_ROUTE = fields(
    {
        "parentRefs": PARENTS,
        "rules": many(
            fields({"matches": many(fields({"method": fields({"service": TEXT})})), "backendRefs": BACKENDS})
        ),
    }
)
PATH = fields({"type": one_of("Exact", "PathPrefix"), "value": {"type": "string", "pattern": "^/"}})
HTTP_ROUTE = fields(
    {
        "parentRefs": PARENTS,
        "rules": many(
            fields(
                {"matches": many(fields({"path": PATH}), 64), "backendRefs": BACKENDS},
                timeouts=fields({"request": DURATION}),
            )
        ),
    }
)
BACKEND_TLS_POLICY = fields(
    {
        "targetRefs": many(fields({"group": {"type": "string"}, "kind": TEXT, "name": NAME}), 16),
        "validation": fields(
            {
                "hostname": NAME,
                "caCertificateRefs": many(fields({"group": {"type": "string"}, "kind": TEXT, "name": NAME}), 8),
            }
        ),
    }
)
INFERENCE_POOL = fields(
    {
        "selector": MATCH_LABELS,
        "targetPorts": many(fields({"number": PORT}), 8),
        "endpointPickerRef": fields(
            {"name": NAME, "port": fields({"number": PORT})}, failureMode=one_of("FailOpen", "FailClose")
        ),
    }
)

POD_TEMPLATE: Schema = {"$ref": "https://kubernetes.io/api/_definitions.json#/$defs/io.k8s.api.core.v1.PodTemplateSpec"}
"""In Kubernetes' own definitions, which the validator brings."""
COUNT: Schema = {"type": "integer", "minimum": 0}
LEADER_WORKER_SET = fields(
    {
        "replicas": COUNT,
        "leaderWorkerTemplate": fields(
            {"size": {"type": "integer", "minimum": 1}, "workerTemplate": POD_TEMPLATE},
            leaderTemplate=POD_TEMPLATE,
            restartPolicy=one_of("RecreateGroupOnPodRestart", "None"),
        ),
    },
    rolloutStrategy=fields(
        {"type": one_of("RollingUpdate")},
        rollingUpdateConfiguration=fields({}, maxSurge=COUNT, maxUnavailable=COUNT),
    ),
    startupPolicy=one_of("LeaderCreated", "LeaderReady"),
)

METADATA = fields({"name": NAME, "labels": LABELS})

SPECIFICATIONS: dict[tuple[str, str], Schema] = {
    ("cert-manager.io/v1", "Certificate"): CERTIFICATE,
    ("cert-manager.io/v1", "Issuer"): ISSUER,
    ("gateway.networking.k8s.io/v1", "BackendTLSPolicy"): BACKEND_TLS_POLICY,
    ("gateway.networking.k8s.io/v1", "GRPCRoute"): GRPC_ROUTE,
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): HTTP_ROUTE,
    ("inference.networking.k8s.io/v1", "InferencePool"): INFERENCE_POOL,
    ("keda.sh/v1alpha1", "ScaledObject"): SCALED_OBJECT,
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"): LEADER_WORKER_SET,
    ("monitoring.coreos.com/v1", "PodMonitor"): POD_MONITOR,
    ("monitoring.coreos.com/v1", "PrometheusRule"): PROMETHEUS_RULE,
}
"""The `spec` of each custom resource, by its API version and kind."""


def schema_of(api_version: str, kind: str) -> Schema:
    """The whole object's schema. Raises KeyError for what is no custom resource that we know."""
    return fields(
        {
            "apiVersion": one_of(api_version),
            "kind": one_of(kind),
            "metadata": METADATA,
            "spec": SPECIFICATIONS[api_version, kind],
        }
    )
