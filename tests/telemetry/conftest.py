"""What several tests of telemetry start with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.telemetry.collector import Collector


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector.serving() as serving:
        yield serving
