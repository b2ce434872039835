"""Everything that `tandem doctor` looks at, in order."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from tandem import rundir, settings
from tandem.doctor import build, leftovers, models, ports, room
from tandem.doctor.finding import Finding, refused
from tandem.engines.hardware import Hardware
from tandem.engines.weights import Cache
from tandem.errors import SettingsError
from tandem.rundir import RunDir
from tandem.settings import Loaded


def examine(flags: Mapping[str, Any], hardware: Hardware) -> Iterator[Finding]:
    """Every finding about this machine, as a service with these flags would find it; starts and changes nothing."""
    try:
        loaded = settings.load(flags, gpu=hardware.gpu)
    except SettingsError as exc:
        yield refused("settings", exc)
        loaded = settings.defaults(gpu=hardware.gpu)
    yield from _of(loaded, hardware)


def _of(loaded: Loaded, hardware: Hardware) -> Iterator[Finding]:
    found = loaded.settings
    run_dir = RunDir(found.run_dir.absolute()) if found.run_dir else rundir.for_port(found.router.port)
    running = run_dir.alive()
    cache = Cache.find(found.hf_home, os.environ)
    set_ports = {path[1] for path in loaded.origins if path[0] == "engines" and path[2:] == ("port",)}
    yield from build.examine(found.engine_python, hardware)
    yield from models.examine(found, cache)
    yield from room.examine(sum(e.replicas for e in found.engines.values()), hardware, cache, run_dir, running=running)
    yield from ports.examine(found, set_ports, running=running)
    yield from leftovers.examine(found.router, run_dir)
