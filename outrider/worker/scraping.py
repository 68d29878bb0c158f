"""A worker's metrics over HTTP, if it is told to answer scrapers."""

from __future__ import annotations

from outrider.rpc.server import Door
from outrider.telemetry.exposition import Exposition
from outrider.worker.config import WorkerConfig


def exposition(config: WorkerConfig) -> Exposition | None:
    """What is scraped, for `set_up`; None if nobody is answered."""
    return Exposition(vllm_names=config.vllm_metrics) if config.metrics else None


def doors(config: WorkerConfig, exposed: Exposition | None) -> list[Door]:
    """The door at which scrapers are answered, if there is one."""
    if exposed is None:
        return []
    # Imported where it is wanted: a worker has no other use for a web server.
    from outrider.http.scraping import make_scraping_app
    from outrider.http.server import HttpServer

    return [HttpServer(make_scraping_app(exposed), config.metrics, "--metrics")]
