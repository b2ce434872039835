"""`tandem router`: the router alone, in front of engines that run elsewhere."""

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
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 8200,
) -> None:
    """Front engines that run elsewhere; starts and supervises nothing."""
    import asyncio

    from tandem.errors import SettingsError
    from tandem.router.listener import listen
    from tandem.router.server import event_loop, front
    from tandem.router.upstream import Upstream
    from tandem.settings import RouterSettings
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
    settings = RouterSettings(host=host, port=port)
    logs.configure("info")
    with (
        listen(host, port) as listener,
        asyncio.Runner(loop_factory=event_loop) as runner,
    ):
        typer.echo(f"Listening on http://{host}:{port}/v1")
        runner.run(front(addresses, settings, listener))
