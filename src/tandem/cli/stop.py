"""`tandem stop`: the running service finishes its requests and ends."""

import typer

from tandem.cli import options


def stop(
    run_dir: options.RunningIn = None,
    port: options.RunningOn = None,
) -> None:
    """Stop the running service; returns when nothing of it is left."""
    import asyncio

    from tandem.cli import talk

    pid = asyncio.run(talk.stop(talk.find(run_dir, port)))
    typer.echo(f"Stopped (pid {pid}).")
