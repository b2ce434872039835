"""`tandem stop`: the running service finishes its requests and ends."""

import typer

from tandem.cli import flags


def stop(
    run_dir: flags.ItsRunDir = None,
    port: flags.ItsPort = None,
) -> None:
    """Stop the running service; returns when nothing of it is left."""
    import asyncio

    from tandem.cli import talk

    pid = asyncio.run(talk.stop(talk.find(run_dir, port)))
    typer.echo(f"Stopped (pid {pid}).")
