"""What `up`, `plan` and `serve` share: from settings to a running service, and what people see of it meanwhile."""

import asyncio
import os
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import typer
from rich.console import Console

from tandem import demo, settings
from tandem.cli import detached, progress
from tandem.engines import hardware, install, launch, weights
from tandem.errors import SettingsError
from tandem.fleet import Fleet, Snapshot
from tandem.service import lifecycle, plans
from tandem.settings import Loaded

SERVED_MODEL = "nomic-ai/nomic-embed-code"
SERVED_URL = "http://127.0.0.1:8001/v1"

_NOTICES = 10.0  # seconds that the router may take to hear that its engines are ready


class Models(Enum):
    """Which models to serve."""

    CONFIGURED = auto()
    DEMO = auto()
    OR_DEMO = auto()  # the demo's, unless some are configured or the defaults are on this machine


def both(embedding: str | None, generation: str | None, run_dir: Path | None, **router: object) -> dict[str, Any]:
    """The flags of a service with an embedding model and a language model, as `up` and `plan` take them."""
    return {
        "engines": {"embedding": {"model": embedding}, "generation": {"model": generation}},
        "router": router,
        "run_dir": run_dir,
    }


def at_url(base_url: str, host: str | None, port: int | None) -> dict[str, Any]:
    """The router's flags for a service at ``base_url``, of which ``host`` and ``port`` replace parts.

    Raises:
        SettingsError: the base URL is none.
    """
    url = urlsplit(base_url)
    try:
        in_url = url.port or 80
    except ValueError:
        in_url = 0
    if url.scheme != "http" or not url.hostname or not in_url:
        raise SettingsError(
            f"the base URL {base_url} is not of the form http://HOST:PORT/v1", "Mend --base-url or VLLM_URL"
        )
    return {"host": host or url.hostname, "port": port or in_url}


def start(
    flags: Mapping[str, Any],
    wanted: Models = Models.CONFIGURED,
    *,
    only: Collection[str] | None = None,
    download: bool = False,
    detach: bool = False,
    wait: bool = True,
    print_commands: bool = False,
) -> None:
    """Start what the settings ask for and serve it until the end; detached, return once it is ready.

    Args:
        only: the engines to start, of those that are set; by default all.
        download: fetch missing weights without asking.
        wait: with ``detach``, whether to wait until it is ready.
        print_commands: say each engine's command line.

    Raises:
        SetupError: anything keeps it from starting; by then nothing of it is left.
    """
    ready = prepare(flags, wanted, only=only, download=download)
    plan = ready.plan
    typer.echo(f"{ready.vllm} on {ready.machine}.")
    if print_commands:
        for spec in plan.specs:
            typer.echo(str(spec.launch))
    again = partial(_again, flags, Models.DEMO if ready.demo else Models.CONFIGURED, only)
    if detach:
        detached.run(plan, wait=wait, announce=_announce, again=again)
    else:
        asyncio.run(_attached(plan, again))


def _again(
    flags: Mapping[str, Any], wanted: Models, only: Collection[str] | None, running: plans.Running
) -> plans.Plan:
    """What the same sources ask for by now, for a service that runs."""
    return prepare(flags, wanted, only=only, running=running).plan


@dataclass(frozen=True)
class Prepared:
    """A plan, and what it was made of.

    Attributes:
        demo: whether the engines are the demo's, and not those that are set.
    """

    plan: plans.Plan
    loaded: Loaded
    machine: hardware.Hardware
    vllm: install.Vllm
    demo: bool


def prepare(
    flags: Mapping[str, Any],
    wanted: Models,
    *,
    only: Collection[str] | None = None,
    download: bool = False,
    starting: bool = True,
    running: plans.Running | None = None,
) -> Prepared:
    """Settings, vLLM, models and machine, and the plan for them.

    Args:
        starting: whether it is to be started: then missing weights may be fetched, and ports that are set must be free.
        running: the service that is to go on with this plan; it fetches nothing, since nobody is there to ask.

    Raises:
        SetupError: something is missing, or does not fit.
    """
    machine = hardware.detect()
    loaded = settings.load(flags, gpu=machine.gpu, only=only)
    vllm = install.find(loaded.settings.engine_python)
    if warned := launch.warning(vllm):
        typer.secho(warned, err=True, fg=typer.colors.YELLOW)
    cache = weights.Cache.find(loaded.settings.hf_home, os.environ)
    if is_demo := _demo(loaded, wanted, cache):
        if running is None:
            typer.echo(demo.ABOUT, err=not starting)
        loaded = loaded.with_engines(demo.engines(loaded.settings, vllm))
    engines = loaded.settings.engines
    found = weights.find_all((engine.model for engine in engines.values()), cache)
    if found.absent and not found.broken and starting and running is None:
        found = _fetched(found, download=download, offline=loaded.settings.offline)
    by_name = found.all()
    models = {name: by_name[engine.model] for name, engine in engines.items()}
    plan = plans.prepare(loaded, machine, vllm, models, cache, starting=starting, running=running)
    return Prepared(plan, loaded, machine, vllm, is_demo)


def _demo(loaded: Loaded, wanted: Models, cache: weights.Cache) -> bool:
    """Whether to serve the demo's models; where that was left open, says which it is, why, and how to choose."""
    if wanted is not Models.OR_DEMO:
        return wanted is Models.DEMO
    if loaded.models_configured:
        typer.echo("Serving the models that are configured (`tandem up --demo` serves the demo's).")
        return False
    names = [engine.model for engine in loaded.settings.engines.values()]
    if all(weights.find(name, cache) for name in names):
        typer.echo(
            f"Serving {' and '.join(names)}: they are in the model cache (`tandem up --demo` serves the demo's)."
        )
        return False
    typer.echo(
        "Serving the demo's models: none are configured, and the default ones are not in the model cache.\n"
        "To choose others, run `tandem up --embedding MODEL --generation MODEL`, or write a tandem.toml."
    )
    return True


def _fetched(found: weights.Found, *, download: bool, offline: bool | None) -> weights.Found:
    """``found`` with all that was absent, where that may be downloaded or somebody agrees; else as it is."""
    if offline and download:
        raise SettingsError("download and offline are both set", "Unset one (--no-offline, or HF_HUB_OFFLINE)")
    if offline or not (download or _agreed(found)):
        return found
    fetched = {model: weights.download(model, found.cache, typer.echo) for model in found.absent}
    return replace(found, models={**found.models, **fetched}, absent=())


def _agreed(found: weights.Found) -> bool:
    are, them = ("is", "it") if len(found.absent) == 1 else ("are", "them")
    question = f"{' and '.join(found.absent)} {are} not in {found.cache.hub}. Download {them}?"
    return sys.stdin.isatty() and typer.confirm(question, default=True)


async def _attached(plan: plans.Plan, again: plans.Again) -> None:
    fleet, console = Fleet(), Console()
    showing = asyncio.create_task(progress.bring_up(fleet.snapshots(), console))

    async def ready() -> None:
        nonlocal showing
        await showing
        await _announce(plan, fleet.now)
        typer.echo("\nCtrl-C stops it.")
        showing = asyncio.create_task(progress.changes(fleet.snapshots(), console))

    try:
        await lifecycle.run(plan, fleet, ready, again)
    finally:
        showing.cancel()
        await asyncio.wait({showing})
    typer.echo("Stopped.")


async def _announce(plan: plans.Plan, snapshot: Snapshot) -> None:
    """Say where the service is and how to use it, once its own health route says that it is ready."""
    # Whose certificate it is does not matter here: only its health is asked for.
    async with httpx2.AsyncClient(base_url=plan.address, trust_env=False, verify=False) as client:
        deadline = time.monotonic() + _NOTICES
        while not await _healthy(client):
            if time.monotonic() > deadline:  # an engine went down again just now, or the router did: both are mended
                typer.echo(f"{plan.address}/health does not say that all is well; it tells what is not.", err=True)
                break
            await asyncio.sleep(0.05)
    url = f"{plan.address}/v1"
    typer.echo(f"\nReady on {url} ({', '.join(f'{e.name}: {e.model}' for e in snapshot.engines)})\n")
    key = "$OPENAI_API_KEY" if plan.router.keys else ""
    typer.echo(_curl(url, snapshot, key) + "\n")
    typer.echo(f"export OPENAI_BASE_URL={url} OPENAI_API_KEY={'YOUR_KEY' if key else 'none'}")
    if embedding := next((e for e in snapshot.engines if e.kind == "embedding"), None):
        typer.echo(f"export VLLM_URL={url} VLLM_MODEL={embedding.model}")
    typer.echo(f"\nLogs are in {plan.run_dir.logs}.")


async def _healthy(client: httpx2.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).status_code == 200
    except httpx2.TransportError:
        return False


def _curl(url: str, snapshot: Snapshot, key: str) -> str:
    engine = snapshot.engines[0]
    path, rest = (
        ("embeddings", '"input": "Hello, world"')
        if engine.kind == "embedding"
        else ("completions", '"prompt": "Hello, world", "max_tokens": 16')
    )
    authorization = f'-H "Authorization: Bearer {key}" ' if key else ""
    return (
        f"curl {url}/{path} {authorization}-H 'Content-Type: application/json' "
        f'-d \'{{"model": "{engine.name}", {rest}}}\''
    )
