"""What pyproject.toml cannot say: with native operators that were built beforehand a wheel is one for this platform."""

from pathlib import Path

from setuptools import Distribution, setup


class _Distribution(Distribution):
    def has_ext_modules(self) -> bool:
        """Whether there is machine code in the package; see outrider/engine/library.py."""
        return any(Path(__file__).parent.glob("outrider/engine/native/built/*.so"))


setup(distclass=_Distribution)
