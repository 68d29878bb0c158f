"""Packages that only some of the settings need, and the extra of the installation that brings them."""

from __future__ import annotations

from importlib.util import find_spec

ENGINE = ("torch", "transformers", "safetensors", "llguidance")
"""What running a model needs: the extra `engine`."""

NGRAM_TABLE = ("safetensors", "numpy")
"""What reading an n-gram table needs: the extra `ngram-table`, and `engine` brings them too."""


def lacking(packages: tuple[str, ...], extra: str) -> str:
    """Which of `packages` are not installed, and what to do; empty if all are. Imports none of them."""
    missing = [name for name in packages if not _is_installed(name)]
    return f"needs {', '.join(missing)}; pip install 'outrider[{extra}]'" if missing else ""


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:
        return False
