"""The places that settings come from, each read into one :class:`Source`."""

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from tandem.errors import SettingsError
from tandem.settings.variables import CONFIG_VARIABLE, VARIABLES


@dataclass(frozen=True)
class Source:
    """Settings from one place: a nested mapping, and how to name where a path of it came from."""

    label: str
    values: Mapping[str, Any]
    names: Mapping[tuple[str, ...], str]

    def name(self, path: tuple[str, ...]) -> str:
        """Where ``path`` was set, such as ``ROUTER_PORT in .env`` or ``router.port in tandem.toml``."""
        within = "" if self.label == "the environment" else f" in {self.label}"
        return f"{self.names.get(path, '.'.join(path))}{within}"


def every(flags: Mapping[str, Any], environ: Mapping[str, str], folder: Path) -> tuple[Source, ...]:
    """All sources, the one that wins first, tandem.toml last.

    Raises:
        SettingsError: one cannot be read, or has a name nobody knows.
    """
    dotenv = folder / ".env"
    in_file = _read_dotenv(dotenv) if dotenv.is_file() else {}
    return (
        Source("the command line", _without_none(flags), {}),
        _from_environment("the environment", environ),
        _from_environment(".env", in_file),
        _from_toml(folder, {**in_file, **environ}),
    )


def config_file(environ: Mapping[str, str] | None = None, folder: Path | None = None) -> Path | None:
    """The tandem.toml that is read; None where there is none."""
    named = (os.environ if environ is None else environ).get(CONFIG_VARIABLE)
    path = (Path.cwd() if folder is None else folder) / (named or "tandem.toml")
    return path.absolute() if path.is_file() else None


def _from_environment(label: str, environ: Mapping[str, str]) -> Source:
    known = {v.name for v in VARIABLES} | {CONFIG_VARIABLE}
    for name in environ:
        if name.startswith("TANDEM_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise SettingsError(
                f"{name} in {label} is no setting of Tandem's",
                f"Did you mean {near[0]}?" if near else f"Known are: {', '.join(sorted(known))}",
            )
    values: dict[str, Any] = {}
    names: dict[tuple[str, ...], str] = {}
    for variable in VARIABLES:
        spellings = [variable.name, variable.legacy] if variable.legacy else [variable.name]
        if spelling := next((name for name in spellings if environ.get(name)), None):
            put(values, variable.path, environ[spelling])
            names[variable.path] = spelling
    return Source(label, values, names)


def _read_dotenv(path: Path) -> dict[str, str]:
    try:
        return {name: value for name, value in dotenv_values(path).items() if value is not None}
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path} cannot be read: {exc}") from exc


def _from_toml(folder: Path, environ: Mapping[str, str]) -> Source:
    named = environ.get(CONFIG_VARIABLE)
    path = folder / (named or "tandem.toml")
    if not named and not path.is_file():
        return Source("tandem.toml", {}, {})
    try:
        with path.open("rb") as file:
            return Source(path.name, tomllib.load(file), {})
    except OSError as exc:
        raise SettingsError(f"{path} cannot be read: {exc.strerror}", f"Mend {CONFIG_VARIABLE}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path} is not valid TOML: {exc}") from exc


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }


def put(values: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    """Set the value at ``path`` of nested mappings, making those that are missing."""
    *parents, last = path
    for key in parents:
        child = values.setdefault(key, {})
        if not isinstance(child, dict):
            child = values[key] = {}
        values = child
    values[last] = value
