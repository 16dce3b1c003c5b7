"""What is refused before a pretraining goes on; no network is built for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.config import PretrainConfig, load_config, to_plain
from backend.errors import UserError
from backend.pretrain import PretrainRequest, resolve


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run, as far as resuming looks at its settings."""
    config = load_config(PretrainConfig, method="smit", preset="tiny")
    request = {"data": ["/data/index.csv"], "cache": None, "init": "/w.safetensors"}
    content = {"config": to_plain(config), "request": request}
    (tmp_path / "config.json").write_text(json.dumps(content))
    return tmp_path


def test_a_run_is_resumed_with_what_it_was_started_with(run_folder: Path) -> None:
    request, config = resolve(PretrainRequest(output=run_folder, data=(), resume=True))
    assert (request.data, request.cache) == ((Path("/data/index.csv"),), None)
    assert request.init == Path("/w.safetensors")
    assert config == load_config(PretrainConfig, method="smit", preset="tiny")


def put(*place: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in place[:-1]:
            content = content[key]
        content[place[-1]] = value

    return change


def drop(*place: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in place[:-1]:
            content = content[key]
        del content[place[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put("request", value={}), "request.data is missing"),
        (put("request", value=[]), "request = []"),
        (put("request", "data", value=None), "request.data = None"),
        (put("request", "data", value=[]), "request.data = []"),
        (put("request", "data", value=[5]), "request.data.0 = 5"),
        (put("request", "data", value="/tmp"), "request.data = '/tmp'"),
        (put("request", "cache", value=5), "request.cache = 5"),
        (put("request", "cache", value="a\0b"), "request.cache: no path holds a null character"),
        (put("config", value=[]), "config = []"),
        (drop("config", "method"), "method"),
        (put("config", "method", value="smit"), "method"),
        (drop("config", "train", "batch_size"), "does not say train.batch_size"),
    ],
)
def test_an_edited_config_is_refused_by_file_and_key(
    run_folder: Path, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    file = run_folder / "config.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        resolve(PretrainRequest(output=run_folder, data=(), resume=True))
    assert caught.value.message.startswith(f"{file}: ")
    assert told in caught.value.message
