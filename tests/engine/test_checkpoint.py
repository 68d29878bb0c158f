"""A checkpoint that is not whole is refused, in words, and as far as possible before its weights are read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.load.checkpoint import read_checkpoint, weights_sha256
from outrider.engine.load.folder import check_folder, load_model
from tests.engine.folders import copied, edit, store, tensors_of

CPU = torch.device("cpu")
DOWN = "model.layers.0.mlp.down_proj.weight"
INDEX = "model.safetensors.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def sharded(folder: Path, *, without: str = "") -> None:
    """Two files and an index, which still names what is left out."""
    tensors = tensors_of(folder)
    weights(folder).unlink()
    names = sorted(tensors)
    files = {name: f"model-{1 + index % 2:05}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(files.values()):
        store(folder, {name: tensors[name] for name in names if files[name] == file and name != without}, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))


def adapter(folder: Path) -> None:
    weights(folder).rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def one_shard_missing(folder: Path) -> None:
    sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def one_that_is_gone(folder: Path) -> None:
    """As in a hub's cache, whose snapshots are links, when a part of it was removed."""
    weights(folder).unlink()
    weights(folder).symlink_to(folder / "blobs" / "4d7a")


def a_folder(folder: Path) -> None:
    weights(folder).unlink()
    weights(folder).mkdir()


def nested(folder: Path) -> None:
    header = b"[" * 100_000
    weights(folder).write_bytes(len(header).to_bytes(8, "little") + header)


def nested_index(folder: Path) -> None:
    sharded(folder)
    (folder / INDEX).write_text("[" * 100_000)


def config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **changes)


def eos(value: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "generation_config.json", eos_token_id=value)


ENCODER_DECODER = {
    "model_type": "musicgen",
    "text_encoder": {"model_type": "t5"},
    "audio_encoder": {"model_type": "encodec"},
    "decoder": {"model_type": "musicgen_decoder"},
}
"""With two models of text. Older transformers read it only if it names all three."""

BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "an LFS pointer": (lambda folder: weights(folder).write_text(POINTER), "git lfs pull"),
    "cut off": (lambda folder: os.truncate(weights(folder), 1_000_000), "1000000 bytes where its header says"),
    "longer than it says": (lambda folder: os.truncate(weights(folder), 3_000_000), "3000000 bytes where its header"),
    "cut off in the header": (lambda folder: os.truncate(weights(folder), 100), "is cut off or no safetensors file"),
    "empty": (lambda folder: os.truncate(weights(folder), 0), r"\(0 bytes\) is cut off"),
    "a header of noise": (lambda folder: weights(folder).write_bytes(b"\x08" + bytes(7) + b"\xff" * 8), "no header"),
    "a header that nests without end": (nested, "no header"),
    "a link to what is gone": (one_that_is_gone, r"cannot be read \(No such file or directory\)"),
    "a folder in its place": (a_folder, r"cannot be read \(Is a directory\)"),
    "an adapter": (adapter, "merge it into its base model"),
    "a shard missing": (one_shard_missing, "lacks model-00002-of-00002.safetensors"),
    "a tensor missing from a shard": (lambda folder: sharded(folder, without=DOWN), f"lacks the tensors {DOWN}"),
    "an index that nests without end": (nested_index, "index.json cannot be read"),
    "an index that leaves the folder": (
        lambda folder: (
            weights(folder).rename(folder / "other.safetensors"),
            (folder / INDEX).write_text('{"weight_map": {"x": "../x.safetensors"}}'),
        ),
        "files outside of the folder",
    ),
    "config.json of noise": (lambda folder: (folder / "config.json").write_text("{"), "cannot read .*config.json"),
    "a number as text": (config(rms_norm_eps="1e-5"), "cannot read .*config.json"),
    "more layers than tensors": (config(num_hidden_layers=10**9), "29 tensors are too few for 1000000000 layers"),
    "kinds of layers as a number": (config(layers_block_type=5), "does not describe one decoder of text"),
    "an encoder and a decoder": (
        lambda folder: (folder / "config.json").write_text(json.dumps(ENCODER_DECODER)),
        "is an encoder-decoder",
    ),
    "an unknown activation": (config(hidden_act="nope"), "cannot make the model"),
    "an unknown quantizer": (config(quantization_config={"quant_method": "nope"}), "cannot make the model"),
    "a quantizer that is not installed": (
        config(quantization_config={"quant_method": "compressed-tensors", "format": "float-quantized"}),
        "cannot make the model .*compressed.tensors",
    ),
    "an end token beyond the vocabulary": (eos(4096), "eos_token_id is 4096 .* vocabulary's size of 4096"),
    "a negative end token": (eos([0, -1]), r"eos_token_id is \[0, -1\]"),
    "an end token in words": (eos("<|endoftext|>"), "eos_token_id is '<|endoftext|>'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_it_is_refused_before_the_weights_are_read(name: str, tmp_path: Path) -> None:
    spoil, words = BROKEN[name]
    folder = copied(tmp_path)
    spoil(folder)
    with pytest.raises(UnsupportedModelError, match=words):
        check_folder(folder)


def test_missing_unexpected_and_mismatched_tensors_are_named(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    tensors = tensors_of(folder)

    def refused(words: str) -> None:
        with pytest.raises(UnsupportedModelError, match=words):
            load_model(folder, device=CPU, dtype="float32")

    store(folder, {name: tensor for name, tensor in tensors.items() if name != DOWN})
    refused(rf"1 missing tensors \({DOWN}\)")
    store(folder, {**tensors, "model.layers.0.mlp.down_proj.bias": torch.zeros(3)})
    refused(r"1 tensors too many \(model.layers.0.mlp.down_proj.bias\)")
    store(folder, {**tensors, DOWN: tensors[DOWN][:, :7].clone()})
    refused(rf"1 tensors of another shape \({DOWN}\)")
    store(folder, {f"base_model.{name}": tensor for name, tensor in tensors.items()})
    refused("missing tensors .*tensors too many .*base_model")
    store(folder, tensors)
    edit(folder / "config.json", tie_word_embeddings=False)
    refused(r"missing tensors \(lm_head.weight\)")


def test_what_transformers_does_not_read_of_rotary_positions_is_no_fault(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    edit(folder / "config.json", rope_parameters={"full_attention": {"rope_type": ["default"]}})
    check_folder(folder)


def test_a_type_that_no_worker_computes_in_is_refused_in_words(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    edit(folder / "config.json", dtype="float64")
    with pytest.raises(UnsupportedModelError, match="are in float64; choose --dtype among float32"):
        load_model(folder, device=CPU, dtype="auto")
    assert load_model(folder, device=CPU, dtype="float32").dtype == torch.float32


def test_a_whole_one_is_loaded_in_one_file_and_in_several(tmp_path: Path) -> None:
    one, several = copied(tmp_path, "one"), copied(tmp_path, "several")
    sharded(several)
    token_ids = torch.tensor([[0, 5, 7]])
    logits = [load_model(each, device=CPU, dtype="float32")(token_ids).logits for each in (one, several)]
    assert torch.equal(*logits)


def test_the_digest_is_of_the_tensors_alone(tmp_path: Path) -> None:
    one, several, other = (copied(tmp_path, name) for name in ("one", "several", "other"))
    sharded(several)
    assert sorted(each.name for each in read_checkpoint(several)) == sorted(tensors_of(one))
    assert weights_sha256(one) == weights_sha256(several)
    tensors = tensors_of(other)
    tensors[DOWN].view(torch.uint8).flatten()[1] ^= 1  # one bit
    store(other, tensors)
    for folder in (one, other):
        os.utime(weights(folder), (1, 1))
    assert weights(one).stat().st_size == weights(other).stat().st_size
    assert weights_sha256(one) != weights_sha256(other)
