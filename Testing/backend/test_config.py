from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any, get_args

import pytest

from backend.config import (
    BASELINES,
    PRESETS,
    FinetuneConfig,
    PretrainConfig,
    build_config,
    first_difference,
    load_config,
    merged,
    preset_names,
    read_mapping,
    to_plain,
)
from backend.errors import UserError, told_plainly
from backend.pretrain import require_enough
from backend.settings.common import NUMBER

_ALL = [(method, preset) for method, presets in PRESETS.items() for preset in presets]


def _load(*overrides: str, file: Path | None = None, preset: str = "released") -> PretrainConfig:
    return load_config(PretrainConfig, method="smit", preset=preset, file=file, overrides=overrides)


def _told(*overrides: str, file: Path | None = None) -> UserError:
    with pytest.raises(UserError) as caught:
        _load(*overrides, file=file)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig])
@pytest.mark.parametrize(("method", "preset"), _ALL)
def test_every_preset_builds_and_survives_the_way_to_json_and_back(
    kind: type[PretrainConfig] | type[FinetuneConfig], method: str, preset: str
) -> None:
    config = load_config(kind, method=method, preset=preset)
    assert config.preset == preset
    assert config.method.name == method
    stored = json.loads(json.dumps(to_plain(config)))
    assert build_config(kind, stored) == config


@pytest.mark.parametrize("name", BASELINES)
def test_a_network_without_pretraining_has_settings_for_fine_tuning_alone(name: str) -> None:
    for preset in BASELINES[name]:
        config = load_config(FinetuneConfig, method=name, preset=preset)
        assert (config.method.name, config.method.encoder.kind) == (name, name)
        assert build_config(FinetuneConfig, json.loads(json.dumps(to_plain(config)))) == config
    with pytest.raises(UserError, match=f"{name} is only trained on labels") as caught:
        load_config(PretrainConfig, method=name)
    assert f"backend finetune --method {name}" in caught.value.hint


def test_presets_are_those_files_that_are_shipped() -> None:
    folder = Path(__file__).parents[2] / "backend" / "presets"
    shipped = {(path.parent.name, path.stem) for path in folder.glob("*/*.yaml")}
    baselines = {(name, preset) for name, presets in BASELINES.items() for preset in presets}
    assert shipped == {*_ALL, *baselines}


def test_released_preset_is_that_of_the_released_code() -> None:
    config = load_config(PretrainConfig, method="smit")
    encoder, train = config.method.encoder, config.train
    assert config.preset == "released"
    assert (encoder.embed_dim, encoder.depths, encoder.heads) == (48, (2, 2, 4, 2), (4,) * 4)
    assert (encoder.window, encoder.patch, encoder.qkv_bias) == (4, 2, False)
    assert (encoder.mlp_ratio, encoder.drop_path, encoder.final_merge) == (4.0, 0.3, True)
    assert config.preprocess.spacing_mm == (2.0, 2.0, 2.0)
    assert config.preprocess.hu_window == (-175.0, 250.0)
    view = config.views.main
    assert (config.views.region, view.size, view.count, view.scale) == (128, 96, 2, (1, 1))
    assert (view.flip_probability, view.intensity_scale, view.intensity_shift) == (0, 0, 0)
    assert config.views.local is None
    assert config.method.tokens == "before_last_stage"
    assert config.method.patch_temperature_delay_epochs == 30
    assert (train.learning_rate, train.weight_decay, train.clip_norm) == (6e-4, 0.01, None)
    assert (train.warmup_epochs, train.epochs, train.batch_size) == (20, 500, 6)


def test_paper_preset_is_that_of_the_paper() -> None:
    config = load_config(PretrainConfig, method="smit", preset="paper")
    method, train = config.method, config.train
    assert (method.encoder.embed_dim, method.encoder.final_merge) == (96, False)
    assert method.tokens == "last_stage"
    assert config.preprocess.spacing_mm == (2.0, 1.5, 1.5)  # z, y, x
    assert (method.mask_ratio, method.mask_cell) == (0.7, 16)
    assert (method.weight_mip, method.weight_mpd, method.weight_itd) == (1.0, 0.1, 0.1)
    assert (method.student_temperature, method.teacher_temperature) == (0.1, (0.04, 0.07))
    assert method.teacher_temperature_warmup_epochs == 30
    assert method.patch_temperature_delay_epochs == 0
    assert (method.ema_momentum, method.centre_momentum) == ((0.996, 1.0), 0.9)
    assert (method.head.hidden, method.head.bottleneck, method.head.prototypes) == (2048, 256, 8192)
    assert (train.learning_rate, train.weight_decay, train.clip_norm) == (2e-4, 0.05, 3.0)
    assert (train.warmup_epochs, train.epochs, train.batch_size) == (30, 400, 8)


def test_file_goes_over_preset_and_override_over_file(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("train: {batch_size: 2, epochs: 7}\nviews: {region: 112}\n")
    config = _load("train.epochs=9", "train.learning_rate=2e-4", file=file)
    assert (config.train.batch_size, config.train.epochs) == (2, 9)
    assert config.train.learning_rate == 2e-4
    assert (config.views.region, config.views.main.size) == (112, 96)  # the rest is the preset's
    assert config.train.warmup_epochs == 20
    assert _load("train.clip_norm=null", preset="paper").train.clip_norm is None
    assert _load("method.teacher_temperature=[0.05, 0.06]").method.teacher_temperature[1] == 0.06


@pytest.mark.parametrize(
    ("override", "path", "near"),
    [
        ("train.batchsize=4", "train.batchsize", "train.batch_size"),
        ("trian.batch_size=4", "trian", "train"),
        ("method.encoder.embed_dims=4", "method.encoder.embed_dims", "method.encoder.embed_dim"),
        ("method.weight_mib=4", "method.weight_mib", "method.weight_mip"),
    ],
)
def test_unknown_key_is_told_with_its_path_and_the_nearest_name(
    override: str, path: str, near: str
) -> None:
    error = _told(override)
    assert repr(path) in error.message
    assert f"Did you mean {near!r}?" in error.hint


@pytest.mark.parametrize(
    ("method", "path", "near"),
    [
        ("dino", "method.kepd", "kept"),
        ("glmae", "method.encoder.widht", "width"),
        ("mae3d", "method.mask_ration", "mask_ratio"),
        ("pgl", "method.encoder.stem_strides", "stem_stride"),
        ("simclr", "method.temparature", "temperature"),
        ("swinunetr_trio", "method.encoder.embed_dims", "embed_dim"),
        ("models_genesis", "method.encoder.width", "widths"),
        ("pcrl", "method.encoder.norms", "norm"),
        ("pcrlv2", "method.encoder.decoders", "decoder"),
        ("rubik", "method.encoder.norms", "norm"),
        ("rubik_pp", "method.encoder.norms", "norm"),
        ("cpc3d", "method.encoder.norms", "norm"),
        ("spark", "method.encoder.block", "blocks"),
    ],
)
def test_an_unknown_key_of_any_method_is_told_with_the_nearest_of_its_own(
    method: str, path: str, near: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(PretrainConfig, method=method, overrides=[f"{path}=1"])
    assert repr(path) in caught.value.message
    whole = f"{path.rpartition('.')[0]}.{near}"
    assert f"Did you mean {whole!r}?" in caught.value.hint


def test_a_length_that_is_refused_names_the_option_too() -> None:
    assert "--max-steps" in _told("train.max_steps=0").hint
    assert "--epochs" in _told("train.epochs=0").hint
    assert _told("train.batch_size=0").hint == "Change it in the file or with --set."


def test_only_what_can_be_pretrained_is_proposed_for_pretraining() -> None:
    hints = []
    for kind in (PretrainConfig, FinetuneConfig):
        with pytest.raises(UserError) as caught:
            load_config(kind, method="smitt")
        hints.append(caught.value.hint)
    assert all("Did you mean 'smit'?" in hint for hint in hints)
    assert ["segresnet" in hint for hint in hints] == [False, True]


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.batch_size=0", "train.batch_size", "0"),
        ("train.learning_rate=-1", "train.learning_rate", "-1"),
        ("train.learning_rate=.nan", "train.learning_rate", "nan"),
        ("train.learning_rate=.inf", "train.learning_rate", "inf"),
        ("preprocess.hu_window=[.nan, 250]", "preprocess.hu_window.0", "nan"),
        ("method.mask_ratio=1", "method.mask_ratio", "1"),
        ("method.encoder.drop_path=1.0", "method.encoder.drop_path", "1.0"),
        ("preprocess.spacing_mm=[1, 0, 1]", "preprocess.spacing_mm.1", "0"),
        ("preprocess.orientation=LPX", "preprocess.orientation", "LPX"),
        ("train.precision=fp16", "train.precision", "fp16"),
        ("train.clip_norm=high", "train.clip_norm", "high"),
        ("train=3", "train", "3"),
        ("train.batch_size=100000", "train.batch_size", "100000"),
        (f"train.epochs={10**20}", "train.epochs", "100000000000000000000"),
        (f"method.head.prototypes={10**20}", "method.head.prototypes", "100000000000000000000"),
        (f"method.encoder.embed_dim={10**12}", "method.encoder.embed_dim", "1000000000000"),
        ("train.learning_rate=101", "train.learning_rate", "101"),
        ("train.weight_decay_end=101", "train.weight_decay_end", "101"),
        ("views.main.scale=[0.001, 1]", "views.main.scale.0", "0.001"),
        ("views.main.scale=[2, 1]", "views.main.scale", "[2, 1]"),
        ("views.main.count=1000", "views.main.count", "1000"),
        ("views.main.size=[48, 48]", "views.main.size =", "[48, 48]"),
        ("views.main.size=2048", "views.main.size =", "2048"),
        ("views.main.blur_sigma=[1e-300, 1]", "views.main.blur_sigma.0", "1e-300"),
        ("method.weight_mip=1e30", "method.weight_mip", "1e30"),
        ("preprocess.hu_window=[5000, 6000]", "hu_window", "[5000.0, 6000.0]"),
        ("preprocess.hu_window=[0, 1e-300]", "hu_window", "1e-300"),
        ("preprocess.hu_window=[-1e308, 1e308]", "preprocess.hu_window.0", "1e308"),
        (f"preprocess.body_threshold_hu={10**20}", "preprocess.body_threshold_hu", "1000"),
    ],
)
def test_value_out_of_range_is_told_with_its_path(override: str, path: str, value: str) -> None:
    error = _told(override)
    assert path in error.message
    assert value in error.message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.accumulate=4"], ["train", "batch_size 6", "accumulate=4"]),
        (["views.region=80"], ["views", "main", "96 voxels", "region 80"]),
        (["views.main.size=48"], ["views.main.size 48", "32"]),
        (["method.mask_cell=8"], ["method.mask_cell 8", "16"]),
        (["method.encoder.heads=[2, 4, 4]"], ["method.encoder", "[2, 4, 4]"]),
        (["method.encoder.heads=[5, 4, 4, 4]"], ["stage 0", "48 channels", "5 heads"]),
        (["preprocess.hu_window=[250, -175]"], ["hu_window must rise"]),
        (
            ["train.learning_rate=0.001", "train.learning_rate_end=0.01"],
            ["learning_rate_end 0.01", "learning_rate 0.001"],
        ),
        (
            ["train.schedule=step", "train.step_epochs=9", "train.epochs=8"],
            ["step_epochs 9", "epochs 8"],
        ),
    ],
)
def test_settings_that_contradict_each_other_are_both_named(
    overrides: list[str], words: list[str]
) -> None:
    message = str(_told(*overrides))
    assert all(word in message for word in words), message


@pytest.mark.parametrize("text", ["train.batch_size", "=4", "train..batch_size=4", ".train=4"])
def test_an_override_that_is_no_assignment_is_told_how_to_write_one(text: str) -> None:
    error = _told(text)
    assert repr(text) in error.message
    assert "--set train.batch_size=4" in error.hint


@pytest.mark.parametrize(
    "content",
    [
        b"train: {batch_size: [}\n",
        b"\xff\xfe\x00",
        b"train:\n\tbatch_size: 4\n",
        b"- 4\n",
        b"",
        b"4",
    ],
)
def test_a_file_that_holds_no_settings_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "my.yaml"
    file.write_bytes(content)
    assert str(file) in _told(file=file).message


def test_a_missing_file_method_or_preset_is_told(tmp_path: Path) -> None:
    assert str(tmp_path / "no.yaml") in _told(file=tmp_path / "no.yaml").message
    with pytest.raises(UserError, match=r"no method 'smot'.*Did you mean 'smit'"):
        preset_names("smot")
    with pytest.raises(UserError, match=r"no preset 'papper'.*Did you mean 'paper'"):
        _load(preset="papper")


def test_a_yaml_file_cannot_make_objects(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("train: !!python/object/apply:os.getcwd []\n")
    assert str(file) in _told(file=file).message


def test_json_is_read_as_well(tmp_path: Path) -> None:
    file = tmp_path / "my.json"
    file.write_text(json.dumps({"train": {"epochs": 3}}))
    assert read_mapping(file) == {"train": {"epochs": 3}}


def test_a_configuration_cannot_change() -> None:
    with pytest.raises(FrozenInstanceError):
        _load().train.epochs = 3  # type: ignore[misc]


def test_first_difference_names_the_setting_with_both_values() -> None:
    ours, theirs = to_plain(_load()), to_plain(_load("train.epochs=3"))
    assert first_difference(ours, ours) == ""
    assert first_difference(ours, theirs) == "train.epochs=500, not 3"


def test_merging_leaves_its_sources_as_they_were() -> None:
    base, top = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}
    assert merged(base, top) == {"a": {"b": 3, "c": 2}, "d": 4}
    assert base == {"a": {"b": 1, "c": 2}}


def test_settings_are_read_without_torch_and_monai() -> None:
    code = (
        "import sys; from backend.config import *; "
        "load_config(PretrainConfig, method='smit'); import backend.errors, backend.geometry; "
        "sys.exit(bool({'torch', 'monai'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "train:\n  epochs: 3\n  batch_size: 4\n  epochs: 5\n",
            ["'epochs' stands twice", "line 4"],
        ),
        ("train: {epochs: 3}\nviews: {region: 96}\ntrain: {seed: 1}\n", ["'train'", "line 3"]),
        ('{"train": {"epochs": 3,\n"epochs": 3}}', ["'epochs' stands twice", "line 2"]),
        ("train: {epochs: [1, {a: 1, a: 2}]}\n", ["'a' stands twice", "line 1"]),
        ("train: {batch_size: 4\n", ["line 2"]),
        ("train:\n  ? [1, 2]\n  : 3\n", ["a list or mapping is no key", "line 2"]),
    ],
)
def test_a_key_that_stands_twice_is_told_with_its_line(
    tmp_path: Path, content: str, words: list[str]
) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(content)
    message = _told(file=file).message
    assert all(word in message for word in [str(file), *words]), message


def test_aliases_of_aliases_that_would_fill_any_memory_are_refused(tmp_path: Path) -> None:
    lists = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    file = tmp_path / "bomb.yaml"
    file.write_text("\n".join(["a0: &a0 [1, 1]", *lists]))
    message = _told(file=file).message
    assert f"{file}: is no valid YAML" in message
    assert "line 1: stands for more than 1,000,000 values" in message


def test_what_two_settings_share_may_stand_once(tmp_path: Path) -> None:
    file = tmp_path / "shared.yaml"
    file.write_text("train: &t {seed: 3}\nagain: *t\n")
    assert read_mapping(file) == {"train": {"seed": 3}, "again": {"seed": 3}}


def test_a_key_that_stands_twice_in_an_override_is_refused() -> None:
    assert "'epochs' stands twice" in _told("train={epochs: 3, epochs: 4}").message


def test_a_key_taken_over_from_an_anchor_may_be_written_again(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("views: &v {region: 96, minimum_overlap: 0.5}\ntrain: {}\n")
    assert read_mapping(file)["views"] == {"region": 96, "minimum_overlap": 0.5}
    file.write_text("a: &v {minimum_overlap: 0.5, region: 64}\nviews:\n  <<: *v\n  region: 96\n")
    assert read_mapping(file)["views"] == {"region": 96, "minimum_overlap": 0.5}


@pytest.mark.parametrize(
    ("override", "option"),
    [
        ("preset=tiny", "--preset"),
        ("method=smit", "--method"),
        ("data=/scans", "--data"),
        ("device=cpu", "--device"),
        ("max_steps=4", "--max-steps N, or set train.max_steps"),
        ("epochs=4", "--epochs N, or set train.epochs"),
    ],
)
def test_an_option_given_as_a_setting_is_told_as_the_option_that_it_is(
    override: str, option: str, tmp_path: Path
) -> None:
    error = _told(override)
    assert f"--set {override}" in error.message
    assert option in error.hint
    file = tmp_path / "my.yaml"
    file.write_text(override.replace("=", ": "))
    error = _told(file=file)
    assert str(file) in error.message
    assert option in error.hint


def test_a_file_may_name_the_preset_that_is_chosen_anyway(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("preset: released\n")
    assert _load(file=file).preset == "released"


@pytest.mark.parametrize(
    "path",
    [
        *("train.max_steps", "train.learning_rate", "train.clip_norm", "train.seed"),
        *("method.encoder.embed_dim", "method.encoder.drop_path", "preprocess.body_threshold_hu"),
        *("data.workers", "data.held_out", "views.main.intensity_scale", "method.mask_ratio"),
    ],
)
@pytest.mark.parametrize("value", ["true", "no"])
def test_a_switch_is_no_number(path: str, value: str) -> None:
    message = _told(f"{path}={value}").message
    assert path in message
    assert str(value == "true") in message
    assert "number" in message


@pytest.mark.parametrize(
    ("method", "path", "value"),
    [
        *(("cpc3d", name, "true") for name in ("skipped_rows", "patch_kept", "patches_per_side")),
        *(("rubik", name, "true") for name in ("gap", "permutations")),
        *(("rubik_pp", name, "true") for name in ("turn", "layers")),
        ("pcrlv2", "swaps", "true"),
        ("glmae", "centre_momentum", "false"),
        *((name, "encoder.widths", "[]") for name in ("models_genesis", "rubik", "cpc3d")),
        ("models_genesis", "encoder.widths", str([4] * 11)),
        ("models_genesis", "encoder.widths", "[8193]"),
        ("pgl", "encoder.depths", "[1, 1, 1, 257]"),
        ("spark", "encoder", "{widths: [], blocks: []}"),
        ("spark", "encoder", "{widths: [4], blocks: [1]}"),
        ("pcrlv2", "encoder.widths", "[8]"),
        *((name, "temperature", "1e-300") for name in ("pcrl", "simclr", "mocov3")),
        *((name, "student_temperature", "1e-5") for name in ("smit", "glmae")),
        ("smit", "encoder.mlp_ratio", "0.001"),
        ("smit", "encoder.window", "1024"),
        ("dino", "head.prototypes", "1"),
        *((name, "projector.output", "1") for name in ("byol", "glmae")),
        ("byol", "projector.layers", "256"),
        ("mip", "masked_views", "1e-9"),
        ("cpc3d", "dot_divisor", "1e300"),
        ("cpc3d", "negatives", "1000000"),
        *((name, "mask_ratio", "1e-12") for name in ("smit", "glmae", "spark", "pgl_mip")),
        *((name, "mask_ratio", "0.9999") for name in ("smit", "glmae", "spark", "pgl_mip")),
        *((name, "weight_koleo", "1") for name in ("mip", "mae3d")),
        *((name, "ema_momentum", "[0.9, 0.5]") for name in ("smit", "glmae", "pgl")),
        ("glmae", "ema_momentum", "[1, 1]"),
        ("pcrl", "ema_momentum", "1"),
        *((name, "blur_sigma", "[2, 1]") for name in ("pcrl", "pcrlv2")),
        ("pcrl", "blur_sigma", "[1, 50]"),
        ("pcrlv2", "noise_variance", "[0, 1e300]"),
        *((name, "shuffle_blocks", "1000000") for name in ("pcrl",)),
        ("rubik", "rotate", "0"),
        ("rubik", "mask", "0"),
    ],
)
def test_a_setting_of_a_method_out_of_range_is_told_with_its_path(
    method: str, path: str, value: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(
            PretrainConfig, method=method, preset="tiny", overrides=[f"method.{path}={value}"]
        )
    assert path in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("method", ["pcrl", "pcrlv2", "rubik", "swinunetr_trio"])
def test_without_any_weight_there_is_nothing_to_learn(method: str) -> None:
    weights = [k for k in read_preset_of(method) if k.startswith("weight_")]
    with pytest.raises(UserError, match="nothing to learn") as caught:
        load_config(PretrainConfig, method=method, overrides=[f"method.{w}=0" for w in weights])
    assert all(weight in caught.value.message for weight in weights)


def read_preset_of(method: str) -> dict[str, object]:
    values = to_plain(load_config(PretrainConfig, method=method))["method"]
    assert isinstance(values, dict)
    return values


@pytest.mark.parametrize("method", ["models_genesis", "spark", "rubik", "rubik_pp", "pgl"])
def test_local_views_are_refused_where_nothing_looks_at_them(method: str) -> None:
    with pytest.raises(UserError, match="no use for local views"):
        load_config(
            PretrainConfig,
            method=method,
            preset="tiny",
            overrides=["views.local={count: 1, size: 32, scale: [0.2, 0.3]}"],
        )


def test_a_method_is_no_setting_of_another() -> None:
    error = _told("method.name=glmae")
    assert "--set method.name=glmae" in error.message
    assert "--method" in error.hint


def test_whole_numbers_are_those_that_people_mean(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("seed: 010\nepochs: 1_000\nratio: 1:30\nleast: -7\n")
    assert read_mapping(file) == {"seed": "010", "epochs": 1000, "ratio": "1:30", "least": -7}


def test_every_number_of_the_settings_refuses_a_switch() -> None:
    metadata = {
        f"{kind.__name__}.{name}": field.metadata
        for kind in _kinds(PretrainConfig) | _kinds(FinetuneConfig)
        for name, field in kind.__pydantic_fields__.items()
        if field.annotation in (int, float)
    }
    assert len(metadata) > 100
    assert [name for name, kept in metadata.items() if NUMBER not in kept] == []


def _kinds(kind: Any) -> set[Any]:
    """A class of settings, and those of its fields."""
    if not hasattr(kind, "__pydantic_fields__"):
        return {found for part in get_args(kind) for found in _kinds(part)}
    inner = (_kinds(field.annotation) for field in kind.__pydantic_fields__.values())
    return {kind}.union(*inner)


_SMALLEST = [
    ("smit", "crop", 16, 32),
    ("pgl", "crop", 16, 32),
    ("models_genesis", "crop", 4, 8),
    ("spark", "crop", 4, 8),
    ("segresnet", "crop", 8, 16),
    ("dynunet", "crop", 32, 64),
    ("swinunetr", "crop", 32, 64),
    ("unetr", "crop", 32, 48),
    ("spark", "views.main.size", 4, 8),
    ("pcrlv2", "views.local.size", 4, 8),
]


@pytest.mark.parametrize(("method", "name", "small", "least"), _SMALLEST)
def test_a_crop_that_leaves_nothing_to_normalise_is_told_with_the_next_possible(
    method: str, name: str, small: int, least: int
) -> None:
    kind = FinetuneConfig if name == "crop" else PretrainConfig
    own = {
        "models_genesis": ["method.encoder.widths=[4, 8, 16]"],
        "spark": ["method.encoder={widths: [4, 8, 16], blocks: [1, 1, 1]}", "method.mask_cell=4"],
        "pcrlv2": ["method.encoder.widths=[4, 8, 16]"],
    }.get(method, [])

    def load(edge: int) -> None:
        overrides = [*own, f"{name}={edge}"]
        load_config(kind, method=method, preset="tiny", overrides=overrides)

    load(least)
    with pytest.raises(UserError, match=rf"(?s)crop|{name}.*{small}.*{least}") as caught:
        load(small)
    assert str(least) in caught.value.message


def test_too_few_scans_for_a_method_are_refused_and_a_batch_with_doubles_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = load_config(PretrainConfig, method="simclr", preset="tiny")
    with pytest.raises(UserError, match=r"simclr .* needs 2 to learn from; there is 1"):
        require_enough(config, scans=1)
    size = config.train.batch_size
    require_enough(config, scans=size)
    assert caplog.messages == []
    require_enough(config, scans=size - 1)
    assert f"train.batch_size {size} is more than the {size - 1} scans" in caplog.text


def test_an_unexpected_error_is_told_in_one_line_and_memory_without_settings() -> None:
    assert told_plainly(ValueError("first\nsecond")).message == "Unexpected ValueError: first"
    assert told_plainly(ValueError()).message == "Unexpected ValueError: no message"
    assert "train." not in told_plainly(MemoryError()).hint
