"""What a model may be called: the path of a folder, or a hub name `org/name`."""

from __future__ import annotations

import re

_PART = r"\w(?:[\w.-]{0,94}\w)?"
_HUB_NAME = re.compile(rf"(?!.*(?:--|\.\.)){_PART}/{_PART}(?<!\.git)", re.ASCII)
"""As the hub has them: what it refuses unasked is a path with a slip in it."""


def is_hub_name(model: str) -> bool:
    """Whether `model` can be looked for at the hub, if it is no folder."""
    return _HUB_NAME.fullmatch(model) is not None
