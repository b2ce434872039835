"""What a user calls a model -> its folder."""

import json
import os
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from tandem.engines import weights
from tandem.engines.weights import Cache
from tandem.errors import SetupError

from .hub import hub


def make(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"config.json": {"model_type": "bert"}, **files}.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache.find(tmp_path / "hf", {})


def test_a_plain_folder(tmp_path: Path, cache: Cache) -> None:
    """Known by its own name, wherever it lies."""
    folder = make(tmp_path / "minilm", **{"tokenizer_config.json": {"chat_template": "{{ x }}"}})
    found = weights.find(f"{folder}/", cache)
    assert found is not None
    assert (found.path, found.name, found.model_type, found.chat_template) == (folder, "minilm", "bert", "{{ x }}")


def test_a_hub_cache_folder_gives_its_newest_snapshot(tmp_path: Path, cache: Cache) -> None:
    """The one `main` points to; without that, the one changed last; under the repository's name."""
    folder = tmp_path / "models--org--some--name"
    old, new = make(folder / "snapshots" / "aaa"), make(folder / "snapshots" / "bbb")
    os.utime(old, (1, 1))
    found = weights.find(str(folder), cache)
    assert found is not None
    assert (found.path, found.name) == (new, "org/some--name")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("aaa")
    found = weights.find(str(folder), cache)
    assert found is not None
    assert found.path == old


def test_a_repository_in_the_cache(cache: Cache) -> None:
    """A repository id is looked up in the cache; one that is not there is None, not an error."""
    snapshot = make(cache.hub / "models--org--name" / "snapshots" / "abc", **{"model.safetensors": "x"})
    for name in ("org/name", "models--org--name"):
        found = weights.find(name, cache)
        assert found is not None
        assert (found.path, found.name) == (snapshot, "org/name")
    assert weights.find("org/other", cache) is None


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"model.safetensors.index.json": {"weight_map": {"a": "1.safetensors"}}, "2.safetensors": "x"},
        {"model-00001-of-00003.safetensors": "x", "model-00003-of-00003.safetensors": "x"},
    ],
)
def test_a_download_that_broke_off_counts_as_none(files: dict[str, object], cache: Cache) -> None:
    """So that it is taken up again."""
    make(cache.hub / "models--org--name" / "snapshots" / "abc", **files)
    assert weights.find("org/name", cache) is None


FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": bytes(2000),
    "pytorch_model.bin": bytes(2000),
    "original/consolidated.00.pth": bytes(4000),
    "onnx/model.onnx": bytes(4000),
    "tokenizer.json": b"{}",
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a hub that has org/name was asked for."""
    with hub("org/name", FILES) as (address, asked):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        yield asked


def test_a_download_fetches_what_an_engine_reads(
    asked: list[str], cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, and no weights twice: neither other frameworks' nor older forms; with a progress bar."""
    said: list[str] = []
    found = weights.download("org/name", cache, said.append)
    assert sorted(path.name for path in found.path.rglob("*")) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (found.name, found.model_type) == ("org/name", "bert")
    assert said == [f"Downloading org/name (0.0 GiB) into {cache.hub}"]
    assert "Fetching 3 files: 100%" in capsys.readouterr().err
    asked.clear()
    again = weights.find("org/name", cache)
    assert again is not None
    assert (again.path, asked) == (found.path, [])


def test_a_download_that_the_disk_has_no_room_for_is_not_begun(
    asked: list[str], cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is what is to be fetched: three files, of 2,024 bytes in all."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("Usage", "free")(2023))
    with pytest.raises(SetupError, match=r"org/name is 0\.0 GiB to download, and .* has 0\.0 GiB free") as refused:
        weights.download("org/name", cache, lambda _: None)
    assert "HF_HOME" in refused.value.mend
    assert not [line for line in asked if line.startswith("GET /org/name")]
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("Usage", "free")(2024))
    assert weights.download("org/name", cache, lambda _: None)


def test_a_failed_download_is_one_line(cache: Cache, monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    """No network, and what is no repository id at all."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free_port}")
    for name in ("org/name", "a--b/c"):
        with pytest.raises(SetupError, match=f"{name} could not be downloaded: "):
            weights.download(name, cache, lambda _: None)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("/no/such/folder", "the model folder /no/such/folder does not exist"),
        ("./nope", "the model folder ./nope does not exist"),
        ("a/b/c", "the model folder a/b/c does not exist"),
        ("~/nope-nope", "does not exist"),
    ],
)
def test_a_folder_that_does_not_exist(model: str, complaint: str, cache: Cache) -> None:
    with pytest.raises(SetupError, match=complaint):
        weights.find(model, cache)


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"config.json": "{"}, "cannot be read"),
        ({"model.safetensors.index.json": ""}, "cannot be read"),
        (
            {"model.safetensors.index.json": {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}},
            "2 weight files are missing, the first is 1.safetensors",
        ),
    ],
)
def test_a_damaged_folder_is_refused(files: dict[str, object], complaint: str, tmp_path: Path, cache: Cache) -> None:
    """Here, where it takes no time, and not after a minute in the engine."""
    with pytest.raises(SetupError, match=complaint):
        weights.find(str(make(tmp_path / "m", **files)), cache)


def test_a_folder_without_a_model_is_refused(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(SetupError, match=r"there is no config.json"):
        weights.find(str(tmp_path), cache)


def test_the_cache_is_where_the_hub_s_own_libraries_look(tmp_path: Path) -> None:
    """The configured root, else XDG's, else the home's; engines get all its names, and are kept offline."""
    assert Cache.find(None, {"XDG_CACHE_HOME": "/x"}).home == Path("/x/huggingface")
    assert Cache.find(None, {}).home == Path.home() / ".cache/huggingface"
    assert Cache.find(None, {"HF_HUB_CACHE": "/models"}).hub == Path("/models")
    assert Cache.find(tmp_path, {}).environment(offline=True) == {
        "HF_HOME": str(tmp_path),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HUGGINGFACE_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
    }


def test_a_missing_model_names_the_ways_out(cache: Cache) -> None:
    assert all(way in str(weights.missing(("org/m",), cache)) for way in ("--download", "hf download org/m", "--demo"))


def test_all_that_is_missing_is_told_at_once(tmp_path: Path, cache: Cache) -> None:
    """Folders that are not there or hold no model, and what is in no cache; each once, whoever asks for it."""
    good, empty = make(tmp_path / "good"), tmp_path / "empty"
    empty.mkdir()
    found = weights.find_all([str(good), "org/a", "/no/such", "org/b", str(empty), "org/a", "/nor/such"], cache)
    assert (list(found.models), found.absent) == ([str(good)], ("org/a", "org/b"))
    with pytest.raises(SetupError) as told:
        found.all()
    assert told.value.cause == (
        f"the model folder /no/such does not exist; {empty} holds no model: there is no config.json in it; "
        f"the model folder /nor/such does not exist; org/a and org/b are neither folders nor in the model cache "
        f"({cache.hub})"
    )
    assert told.value.mend == (
        "Check the path. Check the path, or download it again. Download them with `tandem up --download` or "
        "`hf download org/a` and `hf download org/b`, name folders, or try `tandem up --demo`, which needs no download"
    )


def test_models_that_are_all_there_are_given_by_what_they_were_called(tmp_path: Path, cache: Cache) -> None:
    folders = [str(make(tmp_path / name)) for name in ("a", "b")]
    assert {called: model.name for called, model in weights.find_all(folders, cache).all().items()} == {
        folders[0]: "a",
        folders[1]: "b",
    }
