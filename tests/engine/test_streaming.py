"""Weights go to their device one by one: no second copy of all of them is ever held."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.load import streaming
from outrider.engine.load.folder import load_weights, quantization
from outrider.engine.load.streaming import load_streaming
from tests.engine.folders import BUNDLED, copied, store, tensors_of
from tests.engine.quantized import stored

CPU = torch.device("cpu")
AT_A_TIME = 8
"""Tensors that transformers' loader has its threads bring at a time, and as many that it waits for."""


class Watched:
    """Stands before the files of a checkpoint. Tensors that it hands out are counted while they live."""

    def __init__(self, opened: Any, log: list[int], living: weakref.WeakSet[Tensor]) -> None:
        self._opened, self._log, self._living = opened, log, living

    def __enter__(self) -> Watched:
        self._opened = self._opened.__enter__()
        return self

    def __exit__(self, *of: object) -> None:
        self._opened.__exit__(*of)

    def get_tensor(self, name: str) -> Tensor:
        tensor = self._opened.get_tensor(name)
        self._living.add(tensor)
        self._log.append(len(self._living))
        return tensor


@pytest.mark.parametrize("layout", ["", "gptq"])
def test_the_host_holds_few_tensors_at_a_time(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    stored(folder, layout) if layout else copied(tmp_path)
    opened, living = streaming.safe_open, weakref.WeakSet[Tensor]()
    log: list[int] = []
    monkeypatch.setattr(streaming, "safe_open", lambda *args, **options: Watched(opened(*args, **options), log, living))
    # Tensors of another device are other tensors: a type that is none of the checkpoint's stands for one.
    config: Any = AutoConfig.from_pretrained(folder)
    scheme = quantization(config)
    loaded = load_streaming(folder, config, device=CPU, dtype=torch.float64, scheme=scheme, keeps=False)
    assert len(log) >= len(list(loaded.model.parameters())) > AT_A_TIME
    assert max(log) <= AT_A_TIME


def test_it_is_the_model_that_transformers_loads() -> None:
    config: Any = AutoConfig.from_pretrained(BUNDLED)
    loaded = load_streaming(BUNDLED, config, device=CPU, dtype=None, scheme=None, keeps=False)
    expected = load_weights(BUNDLED, device=CPU, dtype="auto")
    found = loaded.model
    assert found.dtype == expected.dtype
    assert found.generation_config.to_dict() == expected.generation_config.to_dict()
    assert found.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(found.state_dict()[name], each) for name, each in expected.state_dict().items())
    token_ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(found(input_ids=token_ids).logits, expected(input_ids=token_ids).logits)


def test_a_checkpoint_that_is_not_the_models_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied(tmp_path)
    down = "model.layers.0.mlp.down_proj.weight"
    store(folder, {name: tensor for name, tensor in tensors_of(folder).items() if name != down} | {"x": torch.zeros(1)})
    with pytest.raises(UnsupportedModelError, match=rf"1 missing tensors \({down}\); 1 tensors too many \(x\)"):
        load_weights(folder, device=torch.device("meta"), dtype="auto")
