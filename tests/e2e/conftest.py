"""All services of these tests share one interpreter."""

import sys

from outrider.worker.serving import SWITCH_INTERVAL_SECONDS

sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
