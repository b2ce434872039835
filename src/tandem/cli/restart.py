"""`tandem restart`: one engine of the running service starts anew."""

from typing import Annotated

import typer

from tandem.cli import flags


def restart(
    engine: Annotated[str, typer.Argument(help="Its name, as `tandem status` shows it.")],
    run_dir: flags.ItsRunDir = None,
    port: flags.ItsPort = None,
) -> None:
    """Start an engine anew, and bring back one that has failed.

    It finishes its requests first, and newcomers wait. Replicas take turns, so that one always serves.
    """
    import asyncio

    from tandem.cli import talk

    for said in asyncio.run(talk.change(talk.find(run_dir, port), "restart", engine)):
        typer.echo(said)
