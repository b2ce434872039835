"""`tandem reload`: the running service reads its settings anew."""

from pathlib import Path
from typing import Annotated

import typer


def reload(
    run_dir: Annotated[Path | None, typer.Option(help="The service's run folder.")] = None,
    port: Annotated[int | None, typer.Option(help="The port that the service listens on.")] = None,
) -> None:
    """Have the running service do as its settings say by now.

    Only engines whose settings changed start anew; their requests wait meanwhile. Settings that are wrong, or do not
    fit the machine, change nothing.
    """
    import asyncio

    from tandem.cli import talk

    for said in asyncio.run(talk.change(talk.find(run_dir, port), "reload")):
        typer.echo(said)
