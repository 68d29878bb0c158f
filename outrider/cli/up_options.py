"""What `outrider up` and its like start, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import outrider
from outrider.core.propose.ngram import NGRAM_MODEL
from outrider.core.protocol.errors import OutriderError

COORDINATOR_PORT = 50050
"""The coordinator's default port."""
DRAFT_PORT = 50051
"""The draft service's default port."""
VERIFY_PORT = 50052
"""The verify service's default port."""
HTTP_PORT = 8080
"""The default port of the coordinator's HTTP interface."""

_BUNDLED_MODELS = Path(outrider.__file__).parents[1] / "models"
"""The pair that comes with a checkout."""


class NoModelError(OutriderError):
    """No model folder was given and none comes with this installation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """What to start, and where."""

    target: str
    """Folder or hub name of the target model."""
    draft: str | None
    """The same of the draft model, or `ngram` for none, or several with commas; None runs the target alone."""
    ngram_table: str = ""
    """File of n-grams for the verifiers, and for drafters without a model; empty: none."""
    num_verifiers: int = 1
    num_drafters: int = 1
    """Of each draft model."""
    num_coordinators: int = 1
    target_device: str = "cpu"
    draft_device: str = "cpu"
    in_turn: bool = False
    """Whether verify services draft by themselves with the draft model, and no draft service is started."""
    parallel: str | None = None
    """What `--parallel` of the drafters shall be; None leaves it to them."""
    dtype: str | None = None
    """None: float32 on a CPU, where it is exact and fast, else the type of the stored weights."""
    compiled: str | None = None
    """What `--compile` of the workers shall be; None leaves it to `compile_first`."""
    compile_first: bool = False
    """Whether workers on a CPU compile before they serve, where that works, or, as `auto` does, meanwhile."""
    port: int = COORDINATOR_PORT
    draft_port: int = DRAFT_PORT
    verify_port: int = VERIFY_PORT
    """Of the first service of each kind; port 0 takes a free one, and so does every other service."""
    http_port: int | None = None
    """The same of the first coordinator's HTTP interface; None: no coordinator has one."""

    tls: Path | None = None
    """Folder of `make_certificates` for all services; None: they speak plain text."""

    @property
    def drafts(self) -> Sequence[str]:
        """The draft models, each of which gets `num_drafters` services; none in turn."""
        return [] if self.in_turn else [draft for draft in (self.draft or "").split(",") if draft]

    def num_on(self, device: str) -> int:
        """How many workers hold a model in the memory of `device`."""
        num_drafters = self.num_drafters * sum(draft != NGRAM_MODEL for draft in self.drafts)
        devices = [self.target_device] * self.num_verifiers + [self.draft_device] * num_drafters
        return sum(same_device(each, device) for each in devices)

    @property
    def names(self) -> Sequence[str]:
        """What the services are called: numbered where there are several of a kind."""
        num_drafters = self.num_drafters * len(self.drafts)
        return [
            *numbered("verify", self.num_verifiers),
            *numbered("draft", num_drafters),
            *numbered("coordinator", self.num_coordinators),
        ]


class Models(NamedTuple):
    """What to serve."""

    target: str
    draft: str | None
    ngram_table: str
    """See `UpOptions`."""


def choose_models(target: str | None, draft: str | None, ngram_table: str | None, *, no_draft: bool) -> Models:
    """The bundled pair and n-gram table, unless `target` names another, which then brings its own draft or none.

    Raises NoModelError if the bundled ones are wanted and not there.
    """
    if target is None:
        draft = str(_bundled("draft")) if draft is None and not no_draft else draft
        ngram_table = str(_bundled("ngrams.safetensors")) if ngram_table is None else ngram_table
        target = str(_bundled("target"))
    return Models(target, None if no_draft else draft, ngram_table or "")


def numbered(name: str, count: int) -> list[str]:
    """The names of `count` services of a kind."""
    return [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]


def same_device(device: str, other: str) -> bool:
    """Whether two names are one device's."""
    return _numbered_device(device) == _numbered_device(other)


def _numbered_device(device: str) -> str:
    return "cuda:0" if device == "cuda" else device


def _bundled(name: str) -> Path:
    path = _BUNDLED_MODELS / name
    if not path.exists():
        raise NoModelError(f"there is no bundled model in {path}; name your own with --target FOLDER --draft FOLDER")
    return path
