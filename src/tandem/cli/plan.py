"""`tandem plan`: what would be started, and where the memory goes. Starts nothing."""

from typing import Annotated

import typer

from tandem.cli import options


def plan(
    demo: Annotated[bool, typer.Option("--demo", help="Plan for the demo's models.")] = False,
    embedding: options.Embedding = None,
    generation: options.Generation = None,
    host: options.Host = None,
    port: options.Port = None,
    insecure: options.Insecure = None,
    run_dir: options.RunDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what `tandem up` would start, where the memory would go, and where each setting came from."""
    from rich.console import Console

    from tandem.cli import drawing, start

    flags = start.both(embedding, generation, run_dir, host=host, port=port, insecure=insecure)
    models = start.Models.DEMO if demo else start.Models.CONFIGURED
    ready = start.prepare(flags, models, starting=False)
    if as_json:
        typer.echo(drawing.as_json(ready))
    else:
        drawing.show(ready, Console(highlight=False))
