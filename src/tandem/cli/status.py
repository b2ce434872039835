"""`tandem status`: the running service, engine by engine."""

from pathlib import Path
from typing import Annotated

import typer


def status(
    run_dir: Annotated[Path | None, typer.Option(help="The service's run folder.")] = None,
    port: Annotated[int | None, typer.Option(help="The port that the service listens on.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the running service; exit code 0 when every engine is ready, 3 when not."""
    import asyncio

    from rich.console import Console

    from tandem.cli import table, talk

    told = asyncio.run(talk.status(talk.find(run_dir, port)))
    if as_json:
        typer.echo(table.as_json(told))
    else:
        table.show(told, Console(highlight=False))
    if not told.snapshot.ready:
        raise typer.Exit(3)
