"""Telemetry by the standard OTEL_* variables. Nothing is exported unless they ask for it, and nothing recorded but for
that and for a ring."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
    SpanExporter,
)
from opentelemetry.trace import NoOpTracerProvider, Span, Tracer

from outrider import __version__
from outrider.core.protocol.errors import OutriderError
from outrider.telemetry.exposition import Exposition
from outrider.telemetry.metrics import Instruments
from outrider.telemetry.ring import SpanRing
from outrider.telemetry.sampler import RecordingSampler
from outrider.telemetry.tracing import TraceDetail

TRACE_DETAIL_VARIABLE: Final = "OUTRIDER_TRACE_DETAIL"
"""Our own setting: `request` (the default) or `round`."""

SHUTDOWN_SECONDS: Final = 2.0
"""Longest that the end of a process waits for collectors: an orchestrator kills what drains and then takes too long."""

_SCOPE: Final = "outrider"

_log = logging.getLogger(__name__)


class TelemetrySettingError(OutriderError):
    """A variable has a value that it cannot have."""


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What a service records with. Not global: it is handed to whoever records."""

    tracer: Tracer
    instruments: Instruments
    detail: TraceDetail
    ring: SpanRing | None
    """What remembers the latest requests; None where nothing does."""
    _tracer_provider: TracerProvider | None
    _meter_provider: MeterProvider | None

    def records_rounds(self, span: Span) -> bool:
        """Whether `span` shall get a child for each round: to be asked before gathering what such a child would say."""
        return self.detail is TraceDetail.ROUND and span.is_recording() and span.get_span_context().trace_flags.sampled

    def shut_down(self) -> None:
        """Sends what is left and ends the export; gives up after SHUTDOWN_SECONDS in all if no collector answers."""
        providers = [each for each in (self._tracer_provider, self._meter_provider) if each is not None]
        # Exporters retry for longer than they are asked to, so nothing waits for a thread that is still at it.
        ends = [threading.Thread(target=each.shutdown, daemon=True) for each in providers]
        for end in ends:
            end.start()
        deadline = time.monotonic() + SHUTDOWN_SECONDS
        for end in ends:
            end.join(max(0.0, deadline - time.monotonic()))
        if any(end.is_alive() for end in ends):
            _log.warning("no collector took the last spans and metrics within %g s; they are lost", SHUTDOWN_SECONDS)


def set_up(
    service_name: str,
    *,
    environ: Mapping[str, str],
    span_exporter: SpanExporter | None = None,
    metric_reader: MetricReader | None = None,
    exposition: Exposition | None = None,
    ring: SpanRing | None = None,
) -> Telemetry:
    """Reads `environ` and builds the telemetry of one service.

    Traces go to OTLP over HTTP if OTEL_TRACES_EXPORTER says `otlp`, or says nothing and an OTLP endpoint is set; to
    stdout if it says `console`. OTEL_METRICS_EXPORTER does the same for metrics. OTEL_SDK_DISABLED turns all off.
    Endpoints, sampler, batching and OTEL_RESOURCE_ATTRIBUTES are read by the OpenTelemetry SDK from its own variables.
    `span_exporter` and `metric_reader` take the place of what the variables choose; spans reach such an exporter as
    they end. `exposition` gets the metrics, and `ring` every span, sampled or not, beside whoever else does.

    Raises TelemetrySettingError for a bad OUTRIDER_TRACE_DETAIL, for an endpoint that is no URL, and for what the SDK
    cannot read of its variables.
    """
    detail = _detail(environ)
    processor: SpanProcessor | None = None
    tracer_provider: TracerProvider | None = None
    meter_provider: MeterProvider | None = None
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true":
        try:
            processor = SimpleSpanProcessor(span_exporter) if span_exporter is not None else _span_processor(environ)
            reader = metric_reader if metric_reader is not None else _metric_reader(environ)
            resource = _resource(service_name, environ)
            processors = [each for each in (processor, ring) if each is not None]
            if processors:
                tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
                for each in processors:
                    tracer_provider.add_span_processor(each)
                if ring is not None:
                    tracer_provider.sampler = RecordingSampler(tracer_provider.sampler)
            readers = [reader] if reader is not None else []
            if exposition is not None:
                readers.append(exposition.reader)
            if readers:
                meter_provider = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
        except ValueError as error:  # of the SDK, about its own variables
            raise TelemetrySettingError(f"an OTEL_* variable has a value that it cannot have: {error}") from error
    return Telemetry(
        tracer=(tracer_provider or NoOpTracerProvider()).get_tracer(_SCOPE, __version__),
        instruments=Instruments((meter_provider or NoOpMeterProvider()).get_meter(_SCOPE, __version__)),
        detail=detail if processor is not None else TraceDetail.REQUEST,  # the ring keeps no spans of rounds
        ring=ring,
        _tracer_provider=tracer_provider,
        _meter_provider=meter_provider,
    )


def _resource(service_name: str, environ: Mapping[str, str]) -> Resource:
    """What is said of this process. OTEL_RESOURCE_ATTRIBUTES goes before ours, and OTEL_SERVICE_NAME before that."""
    ours = Resource.create({SERVICE_NAME: service_name, SERVICE_VERSION: __version__})
    chosen = environ.get("OTEL_SERVICE_NAME")
    return ours.merge(OTELResourceDetector().detect()).merge(Resource({SERVICE_NAME: chosen} if chosen else {}))


def _detail(environ: Mapping[str, str]) -> TraceDetail:
    value = environ.get(TRACE_DETAIL_VARIABLE) or TraceDetail.REQUEST.value
    try:
        return TraceDetail(value)
    except ValueError:
        choices = " or ".join(each.value for each in TraceDetail)
        raise TelemetrySettingError(f"{TRACE_DETAIL_VARIABLE} is {value!r}; set it to {choices}") from None


def _span_processor(environ: Mapping[str, str]) -> SpanProcessor | None:
    match _exporter(environ, "TRACES"):
        case "otlp":
            # Imported where it is wanted: it brings an HTTP client along.
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            return BatchSpanProcessor(OTLPSpanExporter())
        case "console":
            return BatchSpanProcessor(ConsoleSpanExporter())
        case _:
            return None


def _metric_reader(environ: Mapping[str, str]) -> MetricReader | None:
    match _exporter(environ, "METRICS"):
        case "otlp":
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

            return PeriodicExportingMetricReader(OTLPMetricExporter())
        case "console":
            return PeriodicExportingMetricReader(ConsoleMetricExporter())
        case _:
            return None


def _exporter(environ: Mapping[str, str], signal: str) -> str:
    """`otlp`, `console` or `none`. Any other name is ignored with a warning, as the specification demands."""
    variable = f"OTEL_{signal}_EXPORTER"
    chosen = environ.get(variable, "").strip().lower()
    if not chosen:
        endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
        chosen = "otlp" if any(environ.get(endpoint) for endpoint in endpoints) else "none"
    if chosen not in ("otlp", "console", "none"):
        _log.warning("%s=%s is ignored; otlp, console and none are known", variable, chosen)
        return "none"
    protocol = environ.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if chosen == "otlp" and protocol not in (None, "", "http/protobuf"):
        _log.warning("OTLP protocol %s is not available; http/protobuf is used, usually on port 4318", protocol)
    if chosen == "otlp":
        _check_endpoint(environ, signal)
    return chosen


def _check_endpoint(environ: Mapping[str, str], signal: str) -> None:
    """The exporter takes whatever is said, and loses all that it should send there."""
    for variable in (f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        if endpoint := environ.get(variable):
            if not _is_url(endpoint):
                raise TelemetrySettingError(
                    f"{variable} is {endpoint!r}; set it to a URL such as http://127.0.0.1:4318"
                )
            return


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
