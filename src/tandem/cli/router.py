"""`tandem router`: the router alone, in front of engines that run elsewhere."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

import typer


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
    host: Annotated[str | None, typer.Option(help="Where to listen [default: 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on [default: 8200].")] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Let callers from other machines in without a key.")
    ] = None,
) -> None:
    """Front engines that run elsewhere; starts and supervises nothing."""
    import asyncio

    from tandem import settings
    from tandem.errors import SettingsError
    from tandem.router import exposure
    from tandem.router.listener import listen
    from tandem.router.server import event_loop, front
    from tandem.router.upstream import Upstream
    from tandem.telemetry import logs

    addresses: dict[str, str] = {}
    for given in engine:
        name, equals, url = given.partition("=")
        if not (name and equals and url.startswith(("http://", "https://"))):
            raise SettingsError(f"--engine {given} is not NAME=URL", "Write --engine embedding=http://127.0.0.1:8100")
        if name in addresses or name == "router":
            raise SettingsError(f"--engine {given}: the name {name} is taken", "Give each engine its own")
        addresses[name] = url.rstrip("/").removesuffix("/v1")
        try:
            Upstream(addresses[name], connect_timeout=1)
        except ValueError as exc:
            raise SettingsError(f"--engine {given}: {exc}", "Write --engine embedding=http://127.0.0.1:8100") from exc
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
