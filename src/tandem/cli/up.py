"""`tandem up`: all engines and the router, until Ctrl-C."""

from pathlib import Path
from typing import Annotated

import typer


def up(
    demo: Annotated[bool, typer.Option("--demo", help="Serve two small models that need no download.")] = False,
    or_demo: Annotated[
        bool,
        typer.Option(
            "--or-demo",
            help="Serve the demo's models unless models are configured or the defaults are cached.",
        ),
    ] = False,
    embedding: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The embedding model: repository id or folder.")
    ] = None,
    generation: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The language model: repository id or folder.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Where to listen [default: 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on [default: 8200].")] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Let callers from other machines in without a key.")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder for control socket, pid file and logs.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch missing weights without asking.")] = False,
    offline: Annotated[
        bool | None, typer.Option("--offline/--no-offline", help="Never ask a model hub for anything.")
    ] = None,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Return once everything is ready.")] = False,
) -> None:
    """Start an embedding model and a language model, and serve both until Ctrl-C."""
    from tandem.cli import start

    flags = {
        "engines": {"embedding": {"model": embedding}, "generation": {"model": generation}},
        "router": {"host": host, "port": port, "insecure": insecure},
        "run_dir": run_dir,
        "offline": offline,
    }
    wanted = start.Models.DEMO if demo else start.Models.OR_DEMO if or_demo else start.Models.CONFIGURED
    start.start(flags, wanted, download=download, detach=detach)
