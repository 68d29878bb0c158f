"""Settings: each is a command-line flag and an OUTRIDER_* variable, and the flag wins; bad ones are explained."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, CliImplicitFlag, CliSettingsSource, SettingsConfigDict

from outrider import __version__
from outrider.core.protocol.address import parse_address
from outrider.output import standard_output

ENVIRONMENT_PREFIX = "OUTRIDER_"
"""Variables are the settings' names in capitals behind it."""

CORES_PATTERN = r"^(\d+(,\d+)*)?$"
"""What `cores` of a service looks like."""
CORES_DESCRIPTION = "processor cores to keep to, such as 0,1; empty: any (Linux only)"
"""What it means."""

VLLM_METRICS_DESCRIPTION = "have /metrics tell what vLLM tells by vLLM's names too, for its dashboards"
"""What `vllm_metrics` means."""

DRAIN_SECONDS_MAX = 24 * 3600.0
"""Longest drain that may be configured: a day. Whoever wants a longer one wants the service not to stop."""

NAME_PATTERN = r"^[^\s,]+$"
"""What a name in a certificate looks like."""
NAMES_PATTERN = r"^[^\s,]+(,[^\s,]+)*$"
"""What a list of names looks like."""

_USAGE_ERROR = 2
"""Exit status by the convention of command lines."""


class Problem(NamedTuple):
    """Why a setting's value cannot be."""

    setting: str
    text: str

    @property
    def flag(self) -> str:
        """The service's flag of the setting."""
        return f"--{self.setting.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """The variable of the setting."""
        return f"{ENVIRONMENT_PREFIX}{self.setting.upper()}"


class BadSettingsError(Exception):
    """Settings that are missing, out of range, or name what is not there."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{each.flag}: {each.text}" for each in problems))
        self.problems = problems


class CheckedSettings(BaseSettings):
    """Base of all settings: variables alone, and an error that says all that is wrong with them."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, cli_kebab_case=True, cli_hide_none_type=True, protected_namespaces=()
    )

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """The settings of `values`, and of variables for the others. Raises BadSettingsError with all that is wrong."""
        try:
            found = cls(**values)
        except ValidationError as error:
            raise BadSettingsError([_problem(cls, details) for details in error.errors()]) from error
        if problems := list(found.problems()):
            raise BadSettingsError(problems)
        return found

    def problems(self) -> Iterator[Problem]:
        """What is wrong with settings that have the right form, such as naming what this machine lacks."""
        yield from ()

    def _certificates(self) -> Iterator[Problem]:
        """What is wrong with `tls_cert`, `tls_key` and `tls_ca`."""
        for setting in ("tls_cert", "tls_key", "tls_ca"):
            yield from self._file(setting)
        cert, key, ca = (getattr(self, setting) for setting in ("tls_cert", "tls_key", "tls_ca"))
        if bool(cert) != bool(key):
            yield Problem("tls_key" if cert else "tls_cert", "must be set: certificate and key go together")
        if ca and not cert:
            yield Problem("tls_cert", "must be set: with --tls-ca the services show one another certificates")

    def _file(self, setting: str) -> Iterator[Problem]:
        path = getattr(self, setting)
        if path and not os.access(path, os.R_OK):
            yield Problem(setting, f"there is no file {path!r}, or this user may not read it")


class Settings(CheckedSettings):
    """Base of the services' settings: each is a flag, too."""

    listen: str
    """`host:port` to serve on; port 0 takes a free one."""
    tls_cert: str = Field(
        "",
        description="file in PEM of this service's certificate and of those between it and its authority; with it TLS "
        "is spoken wherever this service listens; it is read again when it changes, and so are the next two",
    )
    tls_key: str = Field("", description="file in PEM of the certificate's key, not encrypted")
    tls_ca: str = Field(
        "",
        description="file in PEM of the authority that signs the services' certificates; with it the services take one "
        "another's word by certificates alone",
    )
    insecure: CliImplicitFlag[bool] = Field(
        False, description="listen beyond this machine without TLS: whoever can reach the port can read and ask"
    )
    reflection: bool = Field(
        True, description="describe the services to tools such as grpcurl; turn it off in production"
    )

    @classmethod
    def from_command_line(cls, program: str) -> Self:
        """Reads flags and variables. Exits with a sentence for each setting that cannot be."""
        parser = argparse.ArgumentParser(
            prog=program, description=cls.__doc__, formatter_class=_Help, allow_abbrev=False
        )
        parser.add_argument("--version", action="version", version=f"{program} {__version__}")
        flags = CliSettingsSource(cls, root_parser=parser)
        with standard_output(program) if sys.stdout is not None else nullcontext():  # for --help and --version
            parsed = flags(args=True)
        try:
            return cls.checked(_cli_settings_source=parsed)
        except BadSettingsError as error:
            for problem in error.problems:
                print(f"{program}: {problem.flag} (or {problem.variable}): {problem.text}", file=sys.stderr)
            print(f"See {program} --help.", file=sys.stderr)
            sys.exit(_USAGE_ERROR)

    def problems(self) -> Iterator[Problem]:
        """See `CheckedSettings`."""
        yield from self._listening("listen")
        yield from self._certificates()

    def _listening(self, setting: str) -> Iterator[Problem]:
        listen = getattr(self, setting)
        try:
            host = parse_address(listen, port_min=0).host
        except ValueError as error:
            yield Problem(setting, str(error))
            return
        if not (self.tls_cert or self.insecure or _is_loopback(host)):
            yield Problem(
                setting,
                f"{listen} can be reached from other machines, and nothing is encrypted: give --tls-cert and --tls-key "
                "(`outrider certs` makes some to try), listen on 127.0.0.1, or say --insecure",
            )


def _is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach what listens there. A name other than localhost may be anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Help(argparse.HelpFormatter):
    """Says a default as its setting's description does where it is made by the machine or empty."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return re.sub(r" \(default(: | factory: .*)\)$", "", action.help or "")


def _problem(kind: type[CheckedSettings], details: Any) -> Problem:
    setting = str(details["loc"][0]) if details["loc"] else ""
    match details["type"]:
        case "string_pattern_mismatch":
            text = f"{details['input']!r} does not fit: {kind.model_fields[setting].description}"
        case "value_error":
            text = str(details["ctx"]["error"])
        case "missing":
            text = "must be set"
        case _:
            text = f"{details['input']!r} cannot be: {details['msg'][0].lower()}{details['msg'][1:]}"
    return Problem(setting, text)
