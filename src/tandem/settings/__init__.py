"""Every setting, where it may come from, and what it must be.

One frozen :class:`Settings` is built once, at the edge, by :func:`load`: flags, then the environment, ``.env``,
``tandem.toml``, and the defaults, in that order. Each value's source is kept beside it for messages.
"""

from tandem.settings.loading import EMBEDDING_PORT, GENERATION_PORT, Loaded, defaults, load
from tandem.settings.shape import ApiSettings, EngineSettings, Memory, RouterSettings, Settings, SupervisionSettings
from tandem.settings.sources import config_file
from tandem.settings.variables import VARIABLES, engine_environment

__all__ = [
    "EMBEDDING_PORT",
    "GENERATION_PORT",
    "VARIABLES",
    "ApiSettings",
    "EngineSettings",
    "Loaded",
    "Memory",
    "RouterSettings",
    "Settings",
    "SupervisionSettings",
    "config_file",
    "defaults",
    "engine_environment",
    "load",
]
