"""Settings: each is a command-line flag and an OUTRIDER_* variable; the flag wins."""

from outrider.settings.settings import CORES_DESCRIPTION, CORES_PATTERN, Settings

__all__ = ["CORES_DESCRIPTION", "CORES_PATTERN", "Settings"]
