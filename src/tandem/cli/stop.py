"""`tandem stop`: the running service finishes its requests and ends."""

from pathlib import Path
from typing import Annotated

import typer


def stop(
    run_dir: Annotated[Path | None, typer.Option(help="The service's run folder.")] = None,
    port: Annotated[int | None, typer.Option(help="The port that the service listens on.")] = None,
) -> None:
    """Stop the running service; returns when nothing of it is left."""
    import asyncio

    from tandem.cli import talk

    pid = asyncio.run(talk.stop(talk.find(run_dir, port)))
    typer.echo(f"Stopped (pid {pid}).")
