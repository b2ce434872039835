"""`tandem status`: the running service, engine by engine."""

import typer

from tandem.cli import flags


def status(
    run_dir: flags.ItsRunDir = None,
    port: flags.ItsPort = None,
    as_json: flags.Json = False,
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
