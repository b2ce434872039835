"""`tandem install`: the vLLM build that fits this machine, in an environment of its own."""

from pathlib import Path
from typing import Annotated

import typer


def install(
    vllm: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="A release of vLLM; by default the one Tandem is tested with."),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to; by default a folder that every clone and run finds."),
    ] = None,
) -> None:
    """Install the vLLM build that fits this machine; run again, it is the upgrade."""
    from tandem.engines import hardware
    from tandem.engines import install as installing

    machine = hardware.detect()
    typer.echo(f"This machine: {machine}.")
    found = installing.install(machine, version=vllm, into=into, say=typer.echo)
    typer.echo(f"{found} is ready: {found.python}")
