"""Divides a model over several devices, by transformers' own plan for its architecture (tensor parallelism)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from outrider.core.protocol.errors import UnsupportedModelError

_DIVIDED = {"num_attention_heads": "attention heads", "num_key_value_heads": "key-value heads"}


def check_division(folder: Path, num_ranks: int) -> None:
    """Raises UnsupportedModelError if the model of a folder that was checked cannot be divided over `num_ranks`
    devices: transformers has no plan for it, or there are not as many heads for each."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    if not config.base_model_tp_plan:
        raise UnsupportedModelError(
            f"transformers has no plan for dividing models of type {config.model_type!r} over several devices; leave "
            "--tensor-parallel out"
        )
    for name, words in _DIVIDED.items():
        num_heads = getattr(config, name, None)
        if num_heads is not None and num_heads % num_ranks:
            divisors = [str(number) for number in range(2, num_heads + 1) if num_heads % number == 0]
            raise UnsupportedModelError(
                f"{num_heads} {words} do not divide into {num_ranks} parts; --tensor-parallel may be one of "
                f"{', '.join(divisors) or '1'}"
            )


def divide(model: PreTrainedModel, device: torch.device, num_ranks: int) -> PreTrainedModel:
    """This rank's part of `model`, which is whole and on the CPU, on `device`; the ranks have met.

    Not by from_pretrained, which needs the accelerate package for it. Raises UnsupportedModelError if a plan does not
    fit its model.
    """
    kind = type(model)
    try:
        from transformers.distributed.configuration_utils import DistributedConfig  # older releases have none

        for name in model.all_tied_weights_keys:  # the plan cuts each by itself; they are tied again below
            holder, _, parameter = name.rpartition(".")
            module = model.get_submodule(holder)
            setattr(module, parameter, nn.Parameter(getattr(module, parameter).detach()))
        config, _, mesh = kind.prepare_distribute_model(DistributedConfig(tp_size=num_ranks))
        kind.maybe_distribute_model(model, config, mesh)  # in its place
        model.tie_weights()
        model.to(device)  # pyright: ignore[reportArgumentType]
    except Exception as error:  # transformers and torch raise whatever they meet
        raise UnsupportedModelError(
            f"transformers cannot divide this {model.config.model_type!r} model over {num_ranks} devices "
            f"({type(error).__name__}: {error}); leave --tensor-parallel out"
        ) from error
    return model.eval()
