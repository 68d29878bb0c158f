"""What a deployment would need and gain."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from outrider.cli.__main__ import app
from outrider.core.protocol.errors import OutriderError
from outrider.plan.device import DEVICES, UnknownDeviceError, parse_device
from outrider.plan.forecast import ALL_REDUCE_SECONDS, OVER_THE_FLOOR, Engine, Load, NoRoomError, Prices, forecast
from outrider.plan.shape import SHAPES, UnknownShapeError, parse_shape

LARGE = Engine(SHAPES["llama-3.1-70b"], DEVICES["h200"], 1.0)
SMALL = Engine(SHAPES["llama-3.2-1b"], DEVICES["l4"])


def test_a_step_reads_weights_and_cache_once() -> None:
    one = LARGE.step_seconds(Load(1, 4096))
    assert one == pytest.approx((70.6e9 + 4096 * 2 * 2 * 80 * 8 * 128) / 4.8e12 * OVER_THE_FLOOR)
    assert LARGE.step_seconds(Load(1, 4096), 9.0) == one, "a few tokens more cost nothing while memory is the limit"
    assert LARGE.step_seconds(Load(64, 512), 16.0) > 2 * LARGE.step_seconds(Load(64, 512), 1.0), "then arithmetic is"


def test_the_forecast_of_a_small_load_is_the_formula() -> None:
    found = forecast(LARGE, SMALL, Load(1, 1024), acceptance=0.8, delay_seconds=1e-3)
    alone, together, apart = found.ways
    step, delay = found.draft_step, 1e-3 / found.verify_seconds
    assert apart.seconds_per_token / found.verify_seconds == pytest.approx(0.2 * (1 + 1.6 * delay) + 0.8 * step)
    assert apart.speed_up == pytest.approx(alone.seconds_per_token / apart.seconds_per_token)
    assert found.roofline == pytest.approx(5.0)
    assert alone.speed_up == 1.0
    assert together.seconds_per_token < alone.seconds_per_token
    assert max(way.speed_up for way in found.ways) < found.roofline


def test_it_says_where_a_device_of_its_own_is_worth_it_and_where_not() -> None:
    slow_card = forecast(LARGE, SMALL, Load(1, 1024), acceptance=0.8, delay_seconds=0.0)
    assert slow_card.best is slow_card.ways[1], "the target's device drafts a dozen times faster than the small card"
    fast_card = forecast(
        LARGE, SMALL._replace(device=DEVICES["h200"]), Load(1, 1024), acceptance=0.8, delay_seconds=0.0
    )
    assert fast_card.best is fast_card.ways[2]
    hopeless = forecast(LARGE, LARGE, Load(1, 1024), acceptance=0.3, delay_seconds=0.0)
    assert hopeless.best is hopeless.ways[0]


def test_more_sessions_get_more_drafters() -> None:
    numbers = [
        forecast(LARGE, SMALL, Load(num, 2048), acceptance=0.8, delay_seconds=0.0).ways[2].num_drafters
        for num in (1, 8, 64)
    ]
    assert numbers == sorted(numbers)
    assert numbers[0] == 1
    assert numbers[-1] > 1


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(NoRoomError, match=r"needs 13\d\.\d GiB .* and h200 has 126\.9: room for 0 tokens"):
        forecast(LARGE._replace(number_bytes=2.0), SMALL, Load(1, 4096), acceptance=0.8, delay_seconds=0.0)
    with pytest.raises(NoRoomError, match="take a larger device"):
        forecast(LARGE, LARGE._replace(device=DEVICES["l4"]), Load(1, 64), acceptance=0.8, delay_seconds=0.0)


def test_no_room_beside_the_target_is_no_error() -> None:
    found = forecast(LARGE._replace(number_bytes=1.9), SMALL, Load(1, 128), acceptance=0.8, delay_seconds=0.0)
    assert math.isinf(found.ways[1].seconds_per_token)
    assert found.best is found.ways[2]


def test_tokens_are_priced_where_prices_are_told() -> None:
    found = forecast(LARGE, SMALL, Load(2, 64), acceptance=0.8, delay_seconds=0.0, prices=Prices(3.6, 0.36))
    alone, _, apart = found.ways
    assert alone.usd_per_million == pytest.approx(1e-3 * alone.seconds_per_token / 2 * 1e6)
    dollars_per_second = 1e-3 + 1e-4 * apart.num_drafters
    assert apart.usd_per_million == pytest.approx(dollars_per_second * apart.seconds_per_token / 2 * 1e6)
    untold = forecast(LARGE, SMALL, Load(2, 64), acceptance=0.8, delay_seconds=0.0, prices=Prices(3.6))
    assert [way.usd_per_million is None for way in untold.ways] == [False, False, True]


def test_several_devices_share_weights_reading_and_price() -> None:
    load = Load(2, 4096)
    four = LARGE._replace(device=DEVICES["h100"], number_bytes=2.0, num_devices=4)
    with pytest.raises(NoRoomError, match="and h100 has"):
        four._replace(num_devices=1).check_room(load)
    four.check_room(load)
    with pytest.raises(NoRoomError, match="8 key-value heads, which do not divide over 3 devices"):
        four._replace(num_devices=3).check_room(load)
    adding = 2 * four.shape.num_layers * ALL_REDUCE_SECONDS
    assert four.step_seconds(load) == pytest.approx(four._replace(num_devices=1).step_seconds(load) / 4 + adding)
    found = forecast(four, SMALL, load, acceptance=0.8, delay_seconds=0.0, prices=Prices(3.6, 0.36))
    alone = found.ways[0]
    assert alone.usd_per_million == pytest.approx(4 * 1e-3 * alone.seconds_per_token / 2 * 1e6)


def test_the_page_says_which_targets_fit_which_devices() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    heading = re.findall(r"(\d) \N{MULTIPLICATION SIGN} (\w+) \|", page)
    rows = re.findall(r"^\| `([\w.-]+)` \| (\d+) GB \| (.*) \|$", page, flags=re.M)
    assert len(heading) == 8
    assert len(rows) == 6
    for name, gigabytes, cells in rows:
        shape = SHAPES[name]
        assert int(gigabytes) == round(shape.weight_bytes(2.0) / 1e9)
        for (num_devices, device), cell in zip(heading, cells.split(" | "), strict=True):
            target = Engine(shape, DEVICES[device], num_devices=int(num_devices))
            kv_tokens = (target.room() - shape.weight_bytes(2.0)) / shape.kv_bytes_per_token
            assert cell == (f"{int(kv_tokens / 1000)} k" if kv_tokens > 0 else "-")


def test_shapes_are_read_from_folders() -> None:
    shape = parse_shape("models/target")
    assert shape.num_parameters == pytest.approx(12_194_688, rel=0.001)
    assert parse_shape("Qwen/Qwen3-8B") is SHAPES["qwen3-8b"]


def test_a_quantized_folder_tells_the_bytes_of_a_weight(tmp_path: Path) -> None:
    config = json.loads(Path("models/target/config.json").read_text())
    quantized = {**config, "quantization_config": {"quant_method": "awq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(quantized))
    assert parse_shape(str(tmp_path)).number_bytes == 2.0
    (tmp_path / "model.safetensors").write_bytes(b"x" * 6_000_000)
    shape = parse_shape(str(tmp_path))
    assert shape.weight_bytes(shape.number_bytes) == pytest.approx(6_000_000)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert parse_shape(str(tmp_path)).number_bytes == 2.0


def test_known_shapes_have_the_parameters_that_their_sizes_make(tmp_path: Path) -> None:
    config = {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    counted, known = parse_shape(str(tmp_path)), SHAPES["llama-3.1-8b"]
    assert counted.num_parameters == pytest.approx(known.num_parameters, rel=0.001)
    assert counted[2:] == known[2:]


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        "{}",
        '{"hidden_size": 0}',
        '{"num_experts": 8}',
        '{"hidden_size": "many"}',
        '{"hidden_size": Infinity}',
        "[" * 100_000,
        " " * (2 << 20),
    ],
    ids=["broken", "list", "empty", "nothing", "experts", "words", "infinity", "nested", "long"],
)
def test_what_is_no_dense_decoder_is_refused(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UnknownShapeError, match="does not tell the shape of a dense decoder"):
        parse_shape(str(tmp_path))


def test_unknown_names_are_refused_with_those_that_are_known() -> None:
    with pytest.raises(UnknownShapeError, match="qwen3-8b"):
        parse_shape("nowhere")
    for text in ("tpu", "1:2", "0:1:1", "a:b:c", "nan:1:1", "1:nan:1", "1:1:inf", "1e308:1:1"):
        with pytest.raises(UnknownDeviceError, match="h200"):
            parse_device(text)
    assert parse_device("24:300:121")[1:] == DEVICES["l4"][1:]
    assert issubclass(UnknownDeviceError, OutriderError)


def test_the_command_tells_it_in_words_and_as_an_object() -> None:
    asked = ["plan", "--target=llama-3.1-70b", "--draft=llama-3.2-1b", "--weight-bytes=1", "--sessions=8"]
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 0, told.output
    assert "Co-locate the drafter with the target (`outrider up --in-turn`)" in told.output
    found = json.loads(CliRunner().invoke(app, [*asked, "--json"]).output)
    assert found["best"] == "drafter on the target's device"
    assert [way["num_drafters"] for way in found["ways"]] == [0, 0, 8]


@pytest.mark.parametrize("flag", ["--acceptance=nan", "--delay-ms=inf", "--weight-bytes=nan", "--target-price=inf"])
def test_what_is_no_number_is_a_bad_value_of_its_flag(flag: str) -> None:
    told = CliRunner().invoke(app, ["plan", "--target=llama-3.1-70b", "--draft=llama-3.2-1b", flag])
    assert told.exit_code == 2, told.output
    assert f"'{flag.partition('=')[0]}'" in told.output
