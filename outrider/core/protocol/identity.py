"""Identities: the names that the services' certificates bear unless other ones are agreed upon."""

from __future__ import annotations

from typing import Final

COORDINATOR_NAME: Final = "outrider-coordinator"
"""Workers take calls from it."""
VERIFIER_NAME: Final = "outrider-verify"
"""A coordinator looks for it at a verify service, whatever the address: a name stands for many of those."""
DRAFTER_NAME: Final = "outrider-draft"
"""The same at a draft service."""
