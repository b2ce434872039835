"""`tandem up`: all engines and the router, until Ctrl-C."""

from typing import Annotated

import typer

from tandem.cli import flags


def up(
    demo: Annotated[bool, typer.Option("--demo", help="Serve two small models that need no download.")] = False,
    or_demo: Annotated[
        bool,
        typer.Option(
            "--or-demo",
            help="Serve the demo's models unless models are configured or the defaults are cached.",
        ),
    ] = False,
    embedding: flags.Embedding = None,
    generation: flags.Generation = None,
    host: flags.Host = None,
    port: flags.Port = None,
    insecure: flags.Insecure = None,
    run_dir: flags.RunDir = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch missing weights without asking.")] = False,
    offline: Annotated[
        bool | None, typer.Option("--offline/--no-offline", help="Never ask a model hub for anything.")
    ] = None,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Return once everything is ready.")] = False,
) -> None:
    """Start an embedding model and a language model, and serve both until Ctrl-C."""
    from tandem.cli import start

    given = {
        "engines": {"embedding": {"model": embedding}, "generation": {"model": generation}},
        "router": {"host": host, "port": port, "insecure": insecure},
        "run_dir": run_dir,
        "offline": offline,
    }
    wanted = start.Models.DEMO if demo else start.Models.OR_DEMO if or_demo else start.Models.CONFIGURED
    start.start(given, wanted, download=download, detach=detach)
