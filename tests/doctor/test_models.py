"""Whether a model is whole, by what its files say of their own sizes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tandem import demo, settings
from tandem.doctor import models
from tandem.doctor.finding import Level
from tandem.engines import weights
from tandem.settings import Settings


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo.GENERATION, tmp_path / "model"))


def asked(model: str, *, offline: bool | None = None) -> Settings:
    engines = {"embedding": {"kind": "embedding", "model": model}}
    return settings.load({"engines": engines, "offline": offline}, gpu=False, only=["embedding"], environ={}).settings


def cache(folder: Path) -> weights.Cache:
    return weights.Cache(folder, folder / "hub")


def test_a_whole_model_is_fine(model: Path, tmp_path: Path) -> None:
    (finding,) = models.examine(asked(str(model)), cache(tmp_path))
    assert finding.level is Level.OK
    assert models.safetensors_size(model / "model.safetensors") == (model / "model.safetensors").stat().st_size


def cut(model: Path) -> None:
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:-1])


def cut_in_header(model: Path) -> None:
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:100])


def pointer(model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def dangling(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(model / "blob")


def no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def no_config(model: Path) -> None:
    (model / "config.json").unlink()


def no_shard(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (cut, "and its header says"),
        (cut_in_header, "cut short within its header"),
        (pointer, "does not begin as a safetensors file does"),
        (dangling, "No such file"),
        (no_tokenizer, "has no tokenizer"),
        (no_config, "there is no config.json"),
        (no_shard, "the first is model-00002-of-00002.safetensors"),
    ],
)
def test_a_spoilt_model_is_a_problem(spoil: Callable[[Path], None], says: str, model: Path, tmp_path: Path) -> None:
    """Found in a moment, and not after a minute in an engine."""
    spoil(model)
    (finding,) = models.examine(asked(str(model)), cache(tmp_path))
    assert finding.level is Level.PROBLEM
    assert says in finding.says
    assert finding.mend


def test_a_header_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    for head in (b"{}x", b"[]", json.dumps({"a": {}}).encode()):
        file.write_bytes(len(head).to_bytes(8, "little") + head)
        with pytest.raises(ValueError, match="no JSON of tensors"):
            models.safetensors_size(file)


def test_without_weights_they_may_be_made_up(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    (finding,) = models.examine(asked(str(model)), cache(tmp_path))
    assert finding.level is Level.WARNING


def test_a_model_to_be_fetched(tmp_path: Path) -> None:
    """It can be, unless that is forbidden; and one whose download was cut off is told."""
    (finding,) = models.examine(asked("org/name"), cache(tmp_path))
    assert finding.level is Level.WARNING
    (tmp_path / "hub/models--org--name/blobs").mkdir(parents=True)
    (tmp_path / "hub/models--org--name/blobs/abc.incomplete").touch()
    finding, cut_off = models.examine(asked("org/name", offline=True), cache(tmp_path))
    assert finding.level is Level.PROBLEM
    assert "a download of org/name was cut off" in cut_off.says
