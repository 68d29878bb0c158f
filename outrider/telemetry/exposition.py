"""Metrics as Prometheus scrapes them: under our names, and where asked under vLLM's too, for its dashboards."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Final

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import MetricsData
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from outrider.telemetry.exemplars import SampleKey, exemplars_of

VLLM_NAMES: Final[Mapping[str, str]] = {
    "outrider_num_requests_running": "vllm:num_requests_running",
    "outrider_num_requests_waiting": "vllm:num_requests_waiting",
    "outrider_kv_cache_usage_perc": "vllm:kv_cache_usage_perc",
    "outrider_prompt_tokens": "vllm:prompt_tokens",
    "outrider_generation_tokens": "vllm:generation_tokens",
    "outrider_inter_token_latency_seconds": "vllm:inter_token_latency_seconds",
    "outrider_spec_decode_num_drafts": "vllm:spec_decode_num_drafts",
    "outrider_spec_decode_num_draft_tokens": "vllm:spec_decode_num_draft_tokens",
    "outrider_spec_decode_num_accepted_tokens": "vllm:spec_decode_num_accepted_tokens",
    "outrider_spec_decode_num_accepted_tokens_per_pos": "vllm:spec_decode_num_accepted_tokens_per_pos",
    "gen_ai_server_request_duration_seconds": "vllm:e2e_request_latency_seconds",
    "gen_ai_server_time_to_first_token_seconds": "vllm:time_to_first_token_seconds",
}
"""What vLLM 0.32 calls the same, by our families' names; its label `model_name` is our `gen_ai_request_model`."""

_MODEL_LABELS = {"gen_ai_request_model": "model_name"}


class Exposition(Collector):
    """The metrics of one service, read when they are asked for. `reader` goes to `set_up`."""

    def __init__(self, *, vllm_names: bool = False) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._vllm_names = vllm_names
        self.reader = _Reader(registry=self._registry, scope_info_enabled=False)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format. Takes milliseconds: call it on a thread of its own."""
        return generate_latest(self)

    def answer(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the format that a scraper with this header Accept reads best, and its content type.

        In OpenMetrics histograms have exemplars: the traces of requests that are among those counted. Takes as long as
        `text`.
        """
        _, content_type = choose_encoder(accept)
        if content_type.startswith("application/openmetrics-text"):
            # As they are: other ways of escaping break names with a colon, and no name of ours needs any.
            return openmetrics.generate_latest(self, openmetrics.ALLOWUTF8), openmetrics.CONTENT_TYPE_LATEST
        return self.text(), CONTENT_TYPE_PLAIN_0_0_4

    def collect(self) -> Iterator[Metric]:
        """Each family, and where asked a second time as vLLM calls it."""
        for family in self._registry.collect():
            if exemplars := self.reader.exemplars if family.type == "histogram" else None:
                family.samples = [
                    sample._replace(exemplar=exemplars.get((sample.name, frozenset(sample.labels.items()))))
                    for sample in family.samples
                ]
            yield family
            if self._vllm_names and (name := VLLM_NAMES.get(family.name)) is not None:
                yield _renamed(family, name)


class _Reader(PrometheusMetricReader):
    """Keeps the exemplars of what is collected, which the exporter leaves out."""

    exemplars: Mapping[SampleKey, Exemplar] = {}

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        self.exemplars = exemplars_of(metrics_data)
        super()._receive_metrics(metrics_data, timeout_millis, **kwargs)


def _renamed(family: Metric, name: str) -> Metric:
    renamed = copy.copy(family)
    renamed.name = name
    renamed.samples = [
        sample._replace(
            name=name + sample.name.removeprefix(family.name),
            labels={_MODEL_LABELS.get(label, label): value for label, value in sample.labels.items()},
        )
        for sample in family.samples
    ]
    return renamed
