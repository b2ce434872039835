"""From what a user calls a model (repository id, folder, hub cache folder) to the folder that holds its files."""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tandem.errors import SetupError

_REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
# What a hub repository may hold beside what vLLM reads: other frameworks' weights, and pictures.
_NOT_DOWNLOADED = [
    "*.msgpack",
    "*.h5",
    "*.onnx",
    "*.ot",
    "onnx/*",
    "openvino/*",
    "original/*",
    "*.png",
    "*.jpg",
]
_OLDER = ("*.bin", "*.pt", "*.pth")  # the same weights once more, where they are there as safetensors


@dataclass(frozen=True)
class Model:
    """A model on disk.

    Attributes:
        path: the folder with ``config.json``, tokenizer and weights.
        name: what callers know it as: the repository id, or the folder's name.
        config: the contents of ``config.json``.
        chat_template: the tokenizer's template for chats; empty without one.
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    chat_template: str = ""

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", ""))


@dataclass(frozen=True)
class Cache:
    """Hugging Face's cache of downloaded models.

    Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """

    home: Path
    hub: Path

    @classmethod
    def find(cls, hf_home: Path | None, environ: Mapping[str, str]) -> "Cache":
        """The configured root and its ``hub`` folder, else those that Hugging Face's own libraries would use."""
        if hf_home is not None:
            home = hf_home.expanduser().absolute()
            return cls(home, home / "hub")
        xdg = environ.get("XDG_CACHE_HOME")
        home = (Path(xdg) if xdg else Path.home() / ".cache") / "huggingface"
        hub = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
        return cls(home, Path(hub).expanduser().absolute() if hub else home / "hub")

    def environment(self, *, offline: bool) -> dict[str, str]:
        """What an engine must see to find models here, by the present names and the older one."""
        return {
            "HF_HOME": str(self.home),
            "HF_HUB_CACHE": str(self.hub),
            "HUGGINGFACE_HUB_CACHE": str(self.hub),
            "HF_HUB_OFFLINE": "1" if offline else "0",
        }

    def snapshot(self, repo_id: str) -> Path | None:
        """The newest snapshot of ``repo_id``; None where it is not in the cache."""
        return newest_snapshot(self.hub / f"models--{repo_id.replace('/', '--')}")


def newest_snapshot(folder: Path) -> Path | None:
    """The snapshot of a hub cache folder (``models--org--name``) that ``main`` points to, else the newest."""
    try:
        main = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
    except OSError:
        main = folder / "snapshots" / "main"
    if main.is_dir():
        return main
    try:
        snapshots = [path for path in (folder / "snapshots").iterdir() if path.is_dir()]
    except OSError:
        return None
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def find(model: str, cache: Cache) -> Model | None:
    """The model on disk; None for a repository id that is not in the cache, or not wholly.

    Raises:
        SetupError: a folder that is not there, no repository id either, or files that are missing.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if (folder / "snapshots").is_dir():
            snapshot = newest_snapshot(folder)
            if snapshot is None:
                raise SetupError(f"the hub cache folder {folder} has no snapshot", "Download the model again")
            return _read(snapshot, _repo_id(folder.name))
        return _read(folder, folder.resolve().name)
    if model.startswith(("/", ".", "~")) or not _REPO_ID.fullmatch(model):
        raise SetupError(f"the model folder {model} does not exist", "Check the path")
    if model.startswith("models--"):
        model = _repo_id(model)
    snapshot = cache.snapshot(model)
    if snapshot is None or not _complete(snapshot):
        return None
    return _read(snapshot, model)


@dataclass(frozen=True)
class Found:
    """What was found of several models.

    Attributes:
        models: those that are on disk, by what a user calls them.
        absent: repository ids that are not in the cache, or not wholly.
        broken: what keeps each of the others from being read.
    """

    models: Mapping[str, Model]
    absent: tuple[str, ...]
    broken: tuple[SetupError, ...]
    cache: Cache

    def all(self) -> Mapping[str, Model]:
        """Every model that was asked for.

        Raises:
            SetupError: some are not there; names them all, so that nobody mends one to learn of the next.
        """
        errors = (*self.broken, *([missing(self.absent, self.cache)] if self.absent else []))
        if errors:
            mends = dict.fromkeys(each.mend for each in errors)
            raise SetupError("; ".join(each.cause for each in errors), ". ".join(mends))
        return self.models


def find_all(models: Iterable[str], cache: Cache) -> Found:
    """As :func:`find`, for each of ``models``, of which some may be the same."""
    found: dict[str, Model] = {}
    absent, broken = list[str](), list[SetupError]()
    for name in dict.fromkeys(models):
        try:
            model = find(name, cache)
        except SetupError as exc:
            broken.append(exc)
        else:
            if model:
                found[name] = model
            else:
                absent.append(name)
    return Found(found, tuple(absent), tuple(broken), cache)


def missing(models: tuple[str, ...], cache: Cache) -> SetupError:
    """The error for models that are not on this machine and may not be downloaded."""
    are, them, folders = ("is neither a folder", "it", "a folder")
    if len(models) > 1:
        are, them, folders = ("are neither folders", "them", "folders")
    return SetupError(
        f"{' and '.join(models)} {are} nor in the model cache ({cache.hub})",
        f"Download {them} with `tandem up --download` or {' and '.join(f'`hf download {each}`' for each in models)}, "
        f"name {folders}, or try `tandem up --demo`, which needs no download",
    )


def download(repo_id: str, cache: Cache, say: Callable[[str], None]) -> Model:
    """Fetch ``repo_id`` from the hub into the cache, with the library's own progress bars.

    Raises:
        SetupError: no such repository, no access, no network, or too little disk.
    """
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    ignored = list(_NOT_DOWNLOADED)
    try:
        files = snapshot_download(repo_id, cache_dir=cache.hub, ignore_patterns=ignored, dry_run=True)
        if any(file.filename.endswith(".safetensors") for file in files):
            ignored += _OLDER
        wanted = [file for file in files if not any(fnmatch(file.filename, pattern) for pattern in ignored)]
        size = sum(file.file_size or 0 for file in wanted if file.will_download)
        cache.hub.mkdir(parents=True, exist_ok=True)
        if size > (free := shutil.disk_usage(cache.hub).free):
            raise SetupError(
                f"{repo_id} is {size / 2**30:.1f} GiB to download, and {cache.hub} has {free / 2**30:.1f} GiB free",
                "Free some, or point HF_HOME at another disk",
            )
        say(f"Downloading {repo_id} ({size / 2**30:.1f} GiB) into {cache.hub}")
        path = Path(snapshot_download(repo_id, cache_dir=cache.hub, ignore_patterns=ignored))
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as exc:  # ValueError: no valid repository id
        first_line = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise SetupError(
            f"{repo_id} could not be downloaded: {first_line}",
            "Check the name and the network; for a gated model, accept its terms and set HF_TOKEN",
        ) from exc
    return _read(path, repo_id)


def _repo_id(folder: str) -> str:
    return folder.removeprefix("models--").replace("--", "/", 1)


def _read(path: Path, name: str) -> Model:
    try:
        config = json.loads((path / "config.json").read_text())
    except FileNotFoundError as exc:
        raise SetupError(
            f"{path} holds no model: there is no config.json in it", "Check the path, or download it again"
        ) from exc
    except (OSError, ValueError) as exc:
        raise SetupError(f"{path / 'config.json'} cannot be read: {exc}", "Download the model again") from exc
    if absent := _absent_shards(path):
        raise SetupError(
            f"{path} is incomplete: {len(absent)} weight files are missing, the first is {absent[0]}",
            "Download the model again",
        )
    return Model(path=path.absolute(), name=name, config=config, chat_template=_chat_template(path))


def _absent_shards(path: Path) -> list[str]:
    """Weight files that the model's index names and that are not there.

    Looked for here, where it takes no time, and not after a minute in the engine. A folder without any weights is not
    incomplete: they may be made up (``--load-format dummy``).
    """
    named: set[str] = set()
    for index in path.glob("*.safetensors.index.json"):
        try:
            named |= set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as exc:
            raise SetupError(f"{index} cannot be read: {exc}", "Download the model again") from exc
    for shard in path.glob("*-of-*.safetensors"):  # an index may come last
        if numbered := re.fullmatch(r"(.*-)(\d+)(-of-)(\d+)(\.safetensors)", shard.name):
            stem, width, total = numbered[1], len(numbered[2]), numbered[4]
            named |= {f"{stem}{n:0{width}}-of-{total}.safetensors" for n in range(1, int(total) + 1)}
    return sorted(name for name in named if not (path / name).exists())


def _complete(snapshot: Path) -> bool:
    """Whether a download came to its end: configuration, and every file of weights."""
    weights = [path for pattern in _WEIGHT_FILES for path in snapshot.glob(pattern)]
    return (snapshot / "config.json").exists() and bool(weights) and not _absent_shards(snapshot)


def _chat_template(path: Path) -> str:
    for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
        try:
            text = (path / name).read_text()
        except OSError:
            continue
        if name.endswith(".jinja"):
            return text
        try:
            template = json.loads(text).get("chat_template")
        except (ValueError, AttributeError):
            continue
        if template:
            return template if isinstance(template, str) else json.dumps(template)
    return ""
