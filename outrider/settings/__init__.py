"""Settings: each is a command-line flag and an OUTRIDER_* variable; the flag wins."""

from outrider.settings.settings import Settings

__all__ = ["Settings"]
