"""A worker's metrics over HTTP, if it is told to answer scrapers."""

from __future__ import annotations

from functools import partial

from outrider.rpc.server import Door
from outrider.rpc.tls_context import server_context
from outrider.rpc.tls_files import TlsFiles
from outrider.telemetry.exposition import Exposition
from outrider.telemetry.metrics import Instruments
from outrider.worker.config import WorkerConfig


def exposition(config: WorkerConfig) -> Exposition | None:
    """What is scraped, for `set_up`; None if nobody is answered."""
    return Exposition(vllm_names=config.vllm_metrics) if config.metrics else None


def doors(config: WorkerConfig, exposed: Exposition | None, instruments: Instruments) -> list[Door]:
    """The door at which scrapers are answered, if there is one: by TLS where the worker speaks it, to whoever asks."""
    if exposed is None:
        return []
    # Imported where it is wanted: a worker has no other use for a web server.
    from outrider.http.scraping import make_scraping_app
    from outrider.http.server import HttpServer

    tls = None
    if config.tls_cert:
        tls = partial(server_context, TlsFiles(config.tls_cert, config.tls_key), instruments.count_refusal)
    return [HttpServer(make_scraping_app(exposed), config.metrics, "--metrics", tls=tls)]
