"""The door: what the services shall be told is checked by their own settings, before any of them is started."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import typer

from coordinator.config import CoordinatorConfig
from draft_service.config import DraftConfig
from outrider.cli.certificates import tls_settings
from outrider.cli.ports import HOST
from outrider.cli.up_options import UpOptions, same_device
from outrider.cli.worker_settings import drafter_settings, verifier_settings
from outrider.core.propose.ngram import NGRAM_MODEL
from outrider.settings import BadSettingsError, Settings
from verify_service.config import VerifyConfig

_TLS_FLAGS: Mapping[str, str] = dict.fromkeys(("tls_cert", "tls_key", "tls_ca"), "--tls")
_WORKER_FLAGS = {**_TLS_FLAGS, "dtype": "--dtype", "compile": "--compile", "ngram_table": "--ngram-table"}
_VERIFIER_FLAGS = {"model": "--target", "draft_model": "--draft", "device": "--target-device", **_WORKER_FLAGS}
_DRAFTER_FLAGS = {"model": "--draft", "device": "--draft-device", "parallel": "--parallel", **_WORKER_FLAGS}
"""By the setting of the service: the flag that sets it here."""

_SOME_ADDRESS = f"{HOST}:0"
_COORDINATOR_SETTINGS = {"listen": _SOME_ADDRESS, "verify": f"{HOST}:1", "draft": ""}
"""What the coordinator is told whatever its variables say. Ports are chosen later."""


class _Service(NamedTuple):
    """One kind of service that would be started."""

    settings: type[Settings]
    values: Mapping[str, str]
    flags: Mapping[str, str]
    """By the setting: the flag of this command."""


def check(options: UpOptions) -> UpOptions:
    """Returns `options`. Raises typer.BadParameter for a value that a service would refuse, of a flag or a variable,
    and for what does not go with `--in-turn`."""
    if options.in_turn and (text := _in_turn_problem(options)):
        raise typer.BadParameter(text, param_hint="'--in-turn'")
    for service in _services(options):
        try:
            settings = service.settings.checked(**service.values)
        except BadSettingsError as error:
            problem = error.problems[0]
            where = service.flags.get(problem.setting, problem.variable)
            raise typer.BadParameter(problem.text, param_hint=f"'{where}'") from error
        if settings.tls_cert and options.tls is None:
            raise typer.BadParameter("services that this command starts speak TLS by --tls DIR", param_hint="'--tls'")
    return options


def _in_turn_problem(options: UpOptions) -> str:
    if not options.draft:
        return "it drafts with a model: name one with --draft MODEL, without --no-draft; or leave --in-turn out"
    if "," in options.draft:
        return "a verify service drafts with one model: name one with --draft, or leave --in-turn out"
    if options.draft == NGRAM_MODEL:
        return (
            "a verify service guesses by n-grams anyway: name a draft model with --draft, or leave --in-turn out and "
            "say --no-draft"
        )
    if options.num_drafters > 1:
        return "no draft service is started: leave --drafters out, or --in-turn"
    if not same_device(options.draft_device, options.target_device):
        return (
            f"both models are on the target's device, {options.target_device}: leave --draft-device out, or --in-turn "
            f"for a draft service on {options.draft_device}"
        )
    if options.parallel is not None:
        return "the verify service drafts one place a pass: leave --parallel out, or --in-turn"
    return ""


def _services(options: UpOptions) -> Iterator[_Service]:
    always = {"listen": _SOME_ADDRESS, "cores": ""}
    yield _Service(VerifyConfig, verifier_settings(options) | always, _VERIFIER_FLAGS)
    for draft in options.drafts:
        yield _Service(DraftConfig, drafter_settings(options, draft) | always, _DRAFTER_FLAGS)
    coordinator = {**_COORDINATOR_SETTINGS, **tls_settings(options.tls, "coordinator"), "cores": ""}
    yield _Service(CoordinatorConfig, coordinator, _TLS_FLAGS)
