"""Every source in order, the defaults beneath, and what is wrong with the result, by its place."""

import difflib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tandem.errors import SettingsError
from tandem.settings import sources
from tandem.settings.shape import (
    ApiSettings,
    EngineSettings,
    Frozen,
    RouterSettings,
    Settings,
    SupervisionSettings,
)
from tandem.settings.sources import Source

EMBEDDING_MODEL = "Qwen/Qwen3-Embedding-0.6B"
GENERATION_MODEL_GPU = "Qwen/Qwen3-8B-FP8"
GENERATION_MODEL_CPU = "Qwen/Qwen3-0.6B"
EMBEDDING_PORT = 8100
GENERATION_PORT = 8101


@dataclass(frozen=True)
class Loaded:
    """Settings, and where each value that is not a default came from, by its path."""

    settings: Settings
    origins: Mapping[tuple[str, ...], str]

    @property
    def models_configured(self) -> bool:
        """Whether anyone chose a model."""
        return any(path[0] == "engines" and path[-1] == "model" for path in self.origins)

    def with_engines(self, engines: Mapping[str, EngineSettings]) -> "Loaded":
        """The same, with other engines."""
        return replace(self, settings=self.settings.model_copy(update={"engines": dict(engines)}))


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    gpu: bool,
    only: Collection[str] | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Loaded:
    """Build the settings from every source.

    Args:
        flags: nested as :class:`Settings` is, without the values nobody gave (None counts as not given).
        gpu: whether this machine has a GPU; it decides the default generation model.
        only: leave out all engines but these.
        environ: the environment; the process's own by default.
        folder: where ``.env`` and ``tandem.toml`` are looked for; the working folder by default.

    Raises:
        SettingsError: a source cannot be read, has a name nobody knows, or a value that does not fit.
    """
    environ = os.environ if environ is None else environ
    folder = Path.cwd() if folder is None else folder
    found = sources.every(flags or {}, environ, folder)
    merged: dict[str, Any] = {}
    origins: dict[tuple[str, ...], str] = {}
    for source in reversed(found):
        for path, value in _leaves(source.values):
            sources.put(merged, path, value)
            origins[path] = source.name(path)
    engines = _with_defaults(merged.get("engines", {}), found[-1], gpu=gpu)
    merged["engines"] = {name: engine for name, engine in engines.items() if only is None or name in only}
    try:
        return Loaded(Settings.model_validate(merged), origins)
    except ValidationError as exc:
        raise _complaint(exc, origins) from exc


def defaults(*, gpu: bool) -> Loaded:
    """The settings of someone who has set nothing."""
    engines = _with_defaults({}, Source("tandem.toml", {}, {}), gpu=gpu)
    return Loaded(Settings.model_validate({"engines": engines}), {})


def _with_defaults(engines: Mapping[str, Any], toml: Source, *, gpu: bool) -> dict[str, Any]:
    """The two default engines beneath what is set, unless tandem.toml lists engines: then just those it lists."""
    if not isinstance(engines, Mapping):
        raise SettingsError(f"engines must be tables ([engines.NAME]), not {engines!r}", "See tandem.example.toml")
    defaults: dict[str, dict[str, Any]] = {
        "embedding": {"kind": "embedding", "model": EMBEDDING_MODEL, "port": EMBEDDING_PORT},
        "generation": {
            "kind": "generation",
            "model": GENERATION_MODEL_GPU if gpu else GENERATION_MODEL_CPU,
            "port": GENERATION_PORT,
        },
    }
    listed = toml.values.get("engines")
    result: dict[str, Any] = {}
    for name in dict.fromkeys([*(() if listed else defaults), *engines]):
        given = engines.get(name, {})
        if not isinstance(given, Mapping):
            raise SettingsError(f"engines.{name} must be a table ([engines.{name}]), not {given!r}")
        if listed and name in listed:
            result[name] = {"port": defaults.get(name, {}).get("port"), **given}
            if name in defaults:
                result[name].setdefault("kind", name)
        else:
            result[name] = {**defaults.get(name, {}), **given}
    return result


def _complaint(exc: ValidationError, origins: Mapping[tuple[str, ...], str]) -> SettingsError:
    """Pydantic's first complaint, with the place where the value was set."""
    error = exc.errors(include_url=False)[0]
    path = tuple(str(part) for part in error["loc"])
    where = next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), ".".join(path))
    if error["type"] == "extra_forbidden":
        field = path[-1]
        tables: dict[str, type[Frozen]] = {
            "engines": EngineSettings,
            "router": RouterSettings,
            "api": ApiSettings,
            "supervision": SupervisionSettings,
        }
        known = tables.get(path[0], Settings) if len(path) > 1 else Settings
        near = difflib.get_close_matches(field, known.model_fields, n=1)
        mend = f"Did you mean {near[0]}?" if near else f"Known are: {', '.join(known.model_fields)}"
        return SettingsError(f"{where}: no such setting", mend)
    message = error["msg"].removeprefix("Value error, ")
    given = "" if isinstance(error["input"], dict) or path[-1:] == ("api_key",) else f", not {error['input']!r}"
    return SettingsError(f"{where}: {message[0].lower()}{message[1:]}{given}")


def _leaves(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and (*path, key)[-1] != "env":
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value
