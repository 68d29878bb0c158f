"""The whole core under random schedules."""

import pytest

# The world checks its promises as it goes; a broken one says which values broke it.
for module in ("world", "drafters", "crashes", "crash_workers", "crash_coordinator"):
    pytest.register_assert_rewrite(f"{__name__}.{module}")
