"""A model that takes longer texts than it was made for: for times, not for text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.load.folder import resolve_folder


def stretch(model: str, folder: Path, num_positions: int) -> Path:
    """The folder of `model` if it takes as many positions, or else a copy in `folder` that says it does.

    Rotary positions have no weights, so that the copy computes what the original would, and the same up to its limit;
    beyond what a model was trained for the text is poor. Files but for the configuration are links to the original's.
    Raises UnsupportedModelError if the model's positions are not rotary, or are scaled by the limit.
    """
    original = resolve_folder(model).resolve()
    config: dict[str, Any] = json.loads((original / "config.json").read_text(encoding="utf-8"))
    if config.get("max_position_embeddings", 0) >= num_positions:
        return original
    rope: dict[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if "max_position_embeddings" not in config or "rope_theta" not in {**config, **rope} or kind != "default":
        raise UnsupportedModelError(
            f"{model} cannot be given {num_positions} positions: its own are not plain rotary ones; ask for shorter "
            "prompts or take another model"
        )
    out = folder / original.name
    out.mkdir(parents=True)
    for file in original.iterdir():
        if file.name != "config.json":
            (out / file.name).symlink_to(file)
    config["max_position_embeddings"] = num_positions
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return out
