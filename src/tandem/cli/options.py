"""Options that several commands have, each in one wording."""

from pathlib import Path
from typing import Annotated

import typer

# Of a service that is to be started.
Embedding = Annotated[str | None, typer.Option(metavar="MODEL", help="The embedding model: repository id or folder.")]
Generation = Annotated[str | None, typer.Option(metavar="MODEL", help="The language model: repository id or folder.")]
Host = Annotated[str | None, typer.Option(help="Where to listen [default: 127.0.0.1].")]
Port = Annotated[int | None, typer.Option(help="The port to listen on [default: 8200].")]
Insecure = Annotated[bool | None, typer.Option("--insecure", help="Let callers from other machines in without a key.")]
RunDir = Annotated[Path | None, typer.Option(help="Folder for control socket, pid file and logs.")]

# Of one that runs already.
RunningIn = Annotated[Path | None, typer.Option(help="The service's run folder.")]
RunningOn = Annotated[int | None, typer.Option(help="The port that the service listens on.")]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
