"""Where a recipe trains."""

from __future__ import annotations

import torch

from recipes.demo_pair.recipe import RecipeError


def usable_device(name: str) -> torch.device:
    """The device of that name. Raises RecipeError if this machine has none."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    num_devices = {"cpu": 1, "cuda": torch.cuda.device_count()}.get(device.type, 0)
    if (device.index or 0) >= num_devices:
        raise RecipeError(f"--device {name}: this PyTorch sees no such device here. Use cpu, cuda or cuda:N.")
    return device
