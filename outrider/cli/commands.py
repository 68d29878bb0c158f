"""Commands whose help shows no type for a flag that takes no value."""

from __future__ import annotations

from typing import Any

import typer.core


class Commands(typer.core.TyperGroup):
    """A group of commands. It quiets its own flags, and those of its commands when they are asked for."""

    def get_params(self, ctx: Any) -> Any:
        """See TyperGroup."""
        return _quieted(super().get_params(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """See TyperGroup."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _quieted(command.get_params(ctx))
        return command


def _quieted(parameters: Any) -> Any:
    for each in parameters:
        if getattr(each, "is_flag", False):
            each.metavar = ""
    return parameters
