"""`tandem up`: all engines and the router, until Ctrl-C."""

from typing import Annotated

import typer

from tandem.cli import options


def up(
    demo: Annotated[bool, typer.Option("--demo", help="Serve two small models that need no download.")] = False,
    or_demo: Annotated[
        bool,
        typer.Option(
            "--or-demo",
            help="Serve the demo's models unless models are configured or the defaults are cached.",
        ),
    ] = False,
    embedding: options.Embedding = None,
    generation: options.Generation = None,
    host: options.Host = None,
    port: options.Port = None,
    insecure: options.Insecure = None,
    run_dir: options.RunDir = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch missing weights without asking.")] = False,
    offline: Annotated[
        bool | None, typer.Option("--offline/--no-offline", help="Never ask a model hub for anything.")
    ] = None,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Return once everything is ready.")] = False,
) -> None:
    """Start an embedding model and a language model, and serve both until Ctrl-C."""
    from tandem.cli import start

    flags = start.both(embedding, generation, run_dir, host=host, port=port, insecure=insecure)
    wanted = start.Models.DEMO if demo else start.Models.OR_DEMO if or_demo else start.Models.CONFIGURED
    start.start(flags | {"offline": offline}, wanted, download=download, detach=detach)
