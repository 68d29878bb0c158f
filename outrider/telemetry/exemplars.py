"""Exemplars: for the buckets of a histogram, a trace that is counted there."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from opentelemetry.sdk.metrics.export import Histogram, HistogramDataPoint, Metric, MetricsData
from opentelemetry.trace import format_trace_id
from prometheus_client.samples import Exemplar

SampleKey: TypeAlias = tuple[str, frozenset[tuple[str, str]]]
"""Name and labels of a sample, as Prometheus is told it."""


def exemplars_of(data: MetricsData) -> Mapping[SampleKey, Exemplar]:
    """By the bucket that has it: the latest trace since the collection before."""
    return {
        key: exemplar
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if isinstance(metric.data, Histogram)
        for point in metric.data.data_points
        if isinstance(point, HistogramDataPoint)
        for key, exemplar in _of_point(metric, point)
    }


def _of_point(metric: Metric, point: HistogramDataPoint) -> Iterator[tuple[SampleKey, Exemplar]]:
    name = f"{_underscored(metric.name)}_seconds_bucket"  # every histogram is of seconds
    labels = {_underscored(key): str(value) for key, value in (point.attributes or {}).items()}
    bounds = [*map(str, point.explicit_bounds), "+Inf"]
    for each in point.exemplars:
        if each.trace_id:
            bucket = bounds[bisect_left(point.explicit_bounds, each.value)]
            exemplar = Exemplar({"trace_id": format_trace_id(each.trace_id)}, each.value, each.time_unix_nano / 1e9)
            yield (name, frozenset({**labels, "le": bucket}.items())), exemplar


def _underscored(name: str) -> str:
    """As the exporter writes our names, which have letters, points and underscores alone."""
    return name.replace(".", "_")
