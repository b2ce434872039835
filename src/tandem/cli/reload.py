"""`tandem reload`: the running service reads its settings anew."""

import typer

from tandem.cli import flags


def reload(
    run_dir: flags.ItsRunDir = None,
    port: flags.ItsPort = None,
) -> None:
    """Have the running service do as its settings say by now.

    Only engines whose settings changed start anew; their requests wait meanwhile. Settings that are wrong, or do not
    fit the machine, change nothing.
    """
    import asyncio

    from tandem.cli import talk

    for said in asyncio.run(talk.change(talk.find(run_dir, port), "reload")):
        typer.echo(said)
