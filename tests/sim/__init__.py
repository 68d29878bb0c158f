"""The whole core under random schedules."""

import pytest

# The world checks its promises as it goes; a broken one says which values broke it.
pytest.register_assert_rewrite(f"{__name__}.world", f"{__name__}.drafters")
