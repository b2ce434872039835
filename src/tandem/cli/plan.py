"""`tandem plan`: what would be started, and where the memory goes. Starts nothing."""

from pathlib import Path
from typing import Annotated

import typer


def plan(
    demo: Annotated[bool, typer.Option("--demo", help="Plan for the demo's models.")] = False,
    embedding: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The embedding model: repository id or folder.")
    ] = None,
    generation: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The language model: repository id or folder.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Where it would listen [default: 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="The port it would listen on [default: 8200].")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder for control socket, pid file and logs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what `tandem up` would start, where the memory would go, and where each setting came from."""
    from rich.console import Console

    from tandem.cli import drawing, start

    flags = {
        "engines": {"embedding": {"model": embedding}, "generation": {"model": generation}},
        "router": {"host": host, "port": port},
        "run_dir": run_dir,
    }
    models = start.Models.DEMO if demo else start.Models.CONFIGURED
    ready = start.prepare(flags, models, starting=False)
    if as_json:
        typer.echo(drawing.as_json(ready))
    else:
        drawing.show(ready, Console(highlight=False))
