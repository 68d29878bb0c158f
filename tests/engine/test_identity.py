"""A model is what it computes, and is called after its folder or its repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from outrider.engine.load.identity import model_name, model_sha256
from tests.engine.folders import copied, edit


def test_a_snapshot_of_a_hub_is_called_after_its_repository() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert model_name(Path(f"/cache/hub/models--Qwen--Qwen3-0.6B/snapshots/{commit}")) == "Qwen/Qwen3-0.6B"
    assert model_name(Path(f"/cache/hub/models--gpt2/snapshots/{commit}")) == "gpt2"
    assert model_name(Path("/models/target")) == "target"
    assert model_name(Path("/snapshots/target")) == "target"


def test_a_folder_has_its_name_however_its_path_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models--Qwen--Qwen3-0.6B" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert model_name(Path(".")) == "Qwen/Qwen3-0.6B"
    assert model_name(Path("../..")) == "models--Qwen--Qwen3-0.6B"


def test_identity_is_weights_configuration_and_tokenizer(tmp_path: Path) -> None:
    one, other = copied(tmp_path, "one"), copied(tmp_path, "other")
    identity = model_sha256(one, "weights", b"tokenizer")
    assert model_sha256(other, "weights", b"tokenizer") == identity
    assert model_sha256(one, "other weights", b"tokenizer") != identity
    assert model_sha256(one, "weights", b"other tokenizer") != identity
    edit(other / "config.json", transformers_version="6.0.0", _name_or_path="elsewhere")
    assert model_sha256(other, "weights", b"tokenizer") == identity
    edit(other / "config.json", rope_theta=500_000.0)
    assert model_sha256(other, "weights", b"tokenizer") != identity
