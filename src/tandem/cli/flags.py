"""Flags that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

Embedding = Annotated[
    str | None, typer.Option("--embedding", metavar="MODEL", help="The embedding model: repository id or folder.")
]
Generation = Annotated[
    str | None, typer.Option("--generation", metavar="MODEL", help="The language model: repository id or folder.")
]
Host = Annotated[str | None, typer.Option("--host", help="Where to listen [default: 127.0.0.1].")]
Port = Annotated[int | None, typer.Option("--port", help="The port to listen on [default: 8200].")]
Insecure = Annotated[bool | None, typer.Option("--insecure", help="Let callers from other machines in without a key.")]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="Folder for control socket, pid file and logs.")]
# Of a service that runs, or ran.
ItsRunDir = Annotated[Path | None, typer.Option("--run-dir", help="The service's run folder.")]
ItsPort = Annotated[int | None, typer.Option("--port", help="The port that the service listens on.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
