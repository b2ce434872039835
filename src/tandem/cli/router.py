"""`tandem router`: the router alone, in front of engines that run elsewhere."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

import typer

from tandem.cli import options


def router(
    engine: Annotated[
        list[str],
        typer.Option(
            "--engine",
            metavar="NAME=URL",
            help="An engine; once for each. Names that begin with embedding or generation tell its kind.",
        ),
    ],
    tokenizer: Annotated[
        list[str] | None,
        typer.Option(
            "--tokenizer",
            metavar="NAME=FOLDER",
            help="The folder with an embedding engine's tokenizer.json: then requests of many callers are merged.",
        ),
    ] = None,
    host: options.Host = None,
    port: options.Port = None,
    insecure: options.Insecure = None,
) -> None:
    """Front engines that run elsewhere; starts and supervises nothing."""
    import asyncio

    from tandem import settings
    from tandem.router import exposure
    from tandem.router.listener import listen
    from tandem.router.server import event_loop, front
    from tandem.telemetry import logs

    addresses = _addresses(engine)
    folders = _folders(tokenizer or [], addresses)
    found = settings.load({"router": {"host": host, "port": port, "insecure": insecure}}, gpu=False).settings
    exposure.check(found.router)
    logs.configure(found.log_level, found.log_format)
    with (
        listen(found.router.host, found.router.port) as listener,
        asyncio.Runner(loop_factory=event_loop) as runner,
    ):
        typer.echo(f"Listening on {found.router.address}/v1")
        log = logs.RequestLog(found.log_level, found.log_format)
        runner.run(front(addresses, found.router, found.api, listener, folders, [log]))


def _addresses(given: Sequence[str]) -> dict[str, str]:
    """Each engine's base URL, without ``/v1``, by its name."""
    from tandem.errors import SettingsError
    from tandem.router.upstream import Upstream

    addresses: dict[str, str] = {}
    for each in given:
        name, equals, url = each.partition("=")
        if not (name and equals and url.startswith(("http://", "https://"))):
            raise SettingsError(f"--engine {each} is not NAME=URL", "Write --engine embedding=http://127.0.0.1:8100")
        if name in addresses or name == "router":
            raise SettingsError(f"--engine {each}: the name {name} is taken", "Give each engine its own")
        addresses[name] = url.rstrip("/").removesuffix("/v1")
        try:
            Upstream(addresses[name], connect_timeout=1)
        except ValueError as exc:
            raise SettingsError(f"--engine {each}: {exc}", "Write --engine embedding=http://127.0.0.1:8100") from exc
    return addresses


def _folders(given: Sequence[str], engines: Collection[str]) -> dict[str, str]:
    from tandem.errors import SettingsError

    folders: dict[str, str] = {}
    for each in given:
        name, equals, folder = each.partition("=")
        if not equals or name not in engines:
            raise SettingsError(f"--tokenizer {each} is not NAME=FOLDER of an engine", "Name one that --engine names")
        if not Path(folder, "tokenizer.json").is_file():
            raise SettingsError(f"--tokenizer {each}: there is no tokenizer.json in that folder", "Name another")
        folders[name] = folder
    return folders
