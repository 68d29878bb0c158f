"""What a model may be called: the path of a folder, or a hub name `org/name`."""

from __future__ import annotations


def is_hub_name(model: str) -> bool:
    """Whether `model` can be looked for at the hub, if it is no folder."""
    return model.count("/") == 1 and not model.startswith((".", "~", "/")) and not model.endswith("/")
