"""Settings: each is a command-line flag and an OUTRIDER_* variable, and the flag wins; bad ones are explained."""

from __future__ import annotations

import sys
from typing import Self

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

ENVIRONMENT_PREFIX = "OUTRIDER_"
"""Variables are the settings' names in capitals behind it."""

CORES_PATTERN = r"^(\d+(,\d+)*)?$"
"""What `cores` of a service looks like."""
CORES_DESCRIPTION = "processor cores to keep to, such as 0,1; empty: any (Linux only)"
"""What it means."""

_USAGE_ERROR = 2
"""Exit status by the convention of command lines."""


class Settings(BaseSettings):
    """Base of the services' settings."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, cli_kebab_case=True, cli_hide_none_type=True, protected_namespaces=()
    )

    @classmethod
    def from_command_line(cls, program: str) -> Self:
        """Reads flags and variables. Exits with a sentence for each setting that is missing or out of range."""
        try:
            return cls(_cli_parse_args=True, _cli_prog_name=program)  # pyright: ignore[reportCallIssue]
        except ValidationError as error:
            for problem in error.errors():
                name = str(problem["loc"][0]) if problem["loc"] else ""
                flag, variable = f"--{name.replace('_', '-')}", f"{ENVIRONMENT_PREFIX}{name.upper()}"
                print(f"{program}: {flag} (or {variable}): {problem['msg']}", file=sys.stderr)
            print(f"See {program} --help.", file=sys.stderr)
            sys.exit(_USAGE_ERROR)
