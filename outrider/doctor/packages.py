"""The installation: this Python, and the packages that Outrider says it needs."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib import metadata

from packaging.requirements import Requirement

from outrider.doctor.finding import Finding, Level

_EXTRAS = {
    "": "nothing runs",
    "engine": "no model runs on this machine; a coordinator, a client and --model ngram do",
    "certs": "`outrider certs` does not run",
}
"""By the extra of the installation: what does not work without it."""


def look_at_packages(
    requirements: list[str] | None = None, installed: Callable[[str], str] = metadata.version
) -> Iterator[Finding]:
    """What is missing or too old. `requirements` are Outrider's own, unless others are given; `installed` tells a
    package's version, or raises PackageNotFoundError."""
    yield Finding(Level.GOOD, "python", platform.python_version())
    wanted = [
        Requirement(text) for text in (metadata.requires("outrider") or [] if requirements is None else requirements)
    ]
    for extra, without in _EXTRAS.items():
        belonging = [each for each in wanted if _belongs(each, extra)]
        if belonging:
            yield _look_at(extra, without, belonging, installed)


def _belongs(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    if not extra:
        return marker is None or marker.evaluate({"extra": ""})
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _look_at(extra: str, without: str, wanted: list[Requirement], installed: Callable[[str], str]) -> Finding:
    subject = f"extra {extra}" if extra else "packages"
    problems: list[str] = []
    for requirement in wanted:
        try:
            version = installed(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    if not problems:
        return Finding(Level.GOOD, subject, f"{len(wanted)} of {len(wanted)} are there")
    name = f"outrider[{extra}]" if extra else "outrider"
    return Finding(
        Level.NOTE if extra else Level.PROBLEM,
        subject,
        f"{'; '.join(problems)}: {without}",
        f"pip install --upgrade '{name}'",
    )
